"""From events to an account: correlate into hops, align with the prediction, attribute time and bytes."""
