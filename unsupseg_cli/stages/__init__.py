"""One file per stage: artifacts in, one artifact out; sharding, resume and progress."""
