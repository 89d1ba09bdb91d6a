"""Models that answer over HTTP, in the protocol of OpenAI's API."""
