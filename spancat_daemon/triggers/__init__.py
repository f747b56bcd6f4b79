"""Why work starts: changes on disk and schedules. Both only say that a scan is due; the scan decides."""
