/* bcc sizes its ring buffers in pages. netpath makes its own maps and uses this for nothing else. */
#define PAGE_SIZE 4096
