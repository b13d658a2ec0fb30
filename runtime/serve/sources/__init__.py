"""Where the media of requests come from."""
