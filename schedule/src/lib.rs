//! Schedules: start a workflow at the times that a specification names.
pub mod spec;
