//! Cron schedules of workflows. (W-B)
