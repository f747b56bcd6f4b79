"""What the daemon says about itself: structured log, its reading by people, the talk with systemd."""
