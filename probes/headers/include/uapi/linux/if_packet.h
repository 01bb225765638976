/* Only has to be there: bcc includes it, the probes use nothing of it. */
