//! Statements sent to Cassandra, counted by kind.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::telemetry;

macro_rules! requests {
    ($($variant:ident = $label:literal),* $(,)?) => {
        /// Kinds of statements.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Request { $($variant),* }

        impl Request {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),* }
            }
        }
    };
}

requests! {
    Append = "append",
    FenceRead = "fence_read",
    ReadLog = "read_log",
    DeleteSegment = "delete_segment",
    ConditionalWrite = "conditional_write",
    SerialRead = "serial_read",
    List = "list",
    Members = "members",
    WriteExecution = "write_execution",
    WriteHistory = "write_history",
    WriteWakeups = "write_wakeups",
    WriteVisibility = "write_visibility",
    Delete = "delete",
    ReadExecution = "read_execution",
    ReadHistory = "read_history",
    ReadWakeups = "read_wakeups",
    ReadVisibility = "read_visibility",
}

/// Counts of one store, for reports.
#[derive(Debug)]
pub(super) struct Counters(Vec<AtomicU64>);

impl Counters {
    pub fn new() -> Self {
        Self(Request::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }

    pub fn sent(&self, request: Request) {
        self.0[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn answered(&self, request: Request, elapsed: Duration, is_ok: bool) {
        telemetry::answered(request.label(), elapsed, is_ok);
    }

    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        Request::ALL
            .iter()
            .map(|request| (request.label(), self.0[*request as usize].load(Ordering::Relaxed)))
            .collect()
    }
}
