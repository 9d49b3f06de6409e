//! Rows of the list of runs, and how they are read.
//!
//! List order: open runs first, newest start first; then closed runs, latest close first; the run id settles ties. So
//! where a row stands changes once in its life, when the run closes, and the two parts are ordered by times that
//! never change: a page goes on after the [`ListPlace`] of the last row seen, whatever was written meanwhile.

use std::{cmp::Reverse, sync::Arc};

use bytes::Bytes;

use crate::Timestamp;

/// A WorkflowExecutionStatus, as a number.
pub type Status = u8;

/// One run, as the list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisibilityRow {
    pub workflow_type: Arc<str>,
    pub status: Status,
    pub start_time: Timestamp,
    /// `None`: the run is open.
    pub close_time: Option<Timestamp>,
    /// It belongs to a division of the namespace that is listed only when it is asked for.
    pub hidden: bool,
    /// When the row was made, by the clock of its writer: until then readers saw the one before.
    pub made_at: Timestamp,
    /// Values by which the run can be found; a name may have several.
    pub keywords: Vec<(Arc<str>, Arc<str>)>,
    /// Encoded `temporal.api.workflow.v1.WorkflowExecutionInfo`.
    pub info: Bytes,
}

impl VisibilityRow {
    pub fn place(&self, run_id: &Arc<str>) -> ListPlace {
        let at = self.close_time.unwrap_or(self.start_time);
        ListPlace { closed: self.close_time.is_some(), at: Reverse(at), run_id: run_id.clone() }
    }
}

/// Where a row stands in the list: smaller is earlier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListPlace {
    pub closed: bool,
    /// Start of an open run, close of a closed one.
    pub at: Reverse<Timestamp>,
    pub run_id: Arc<str>,
}

/// A row with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRun {
    pub workflow_id: Arc<str>,
    pub run_id: Arc<str>,
    pub row: VisibilityRow,
}

impl ListedRun {
    pub fn place(&self) -> ListPlace {
        self.row.place(&self.run_id)
    }
}

/// Which index to read. Each gives its rows in list order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VisibilityIndex {
    /// Rows with one of these statuses, of one type or of any.
    Status { workflow_type: Option<Arc<str>>, statuses: StatusSet, hidden: Hidden },
    /// Rows that carry this keyword, hidden ones too.
    Keyword { name: Arc<str>, value: Arc<str> },
}

/// Whether hidden rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    Without,
    With,
}

/// Some of the statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusSet(u16);

impl StatusSet {
    pub const NONE: Self = Self(0);
    /// Every status that there is, or that may come.
    pub const ALL: Self = Self(u16::MAX);

    pub fn of(statuses: impl IntoIterator<Item = Status>) -> Self {
        Self(statuses.into_iter().filter(|status| *status < 16).fold(0, |set, status| set | 1 << status))
    }

    pub fn contains(self, status: Status) -> bool {
        status < 16 && self.0 & 1 << status != 0
    }

    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Status> {
        (0..16).filter(move |status| self.contains(*status))
    }
}

/// Both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    pub from: Timestamp,
    pub until: Timestamp,
}

impl TimeRange {
    pub const ALL: Self = Self { from: Timestamp(i64::MIN), until: Timestamp::MAX };
    pub const NONE: Self = Self { from: Timestamp::MAX, until: Timestamp(i64::MIN) };

    pub fn contains(self, at: Timestamp) -> bool {
        self.from <= at && at <= self.until
    }

    pub fn is_empty(self) -> bool {
        self.until < self.from
    }

    pub fn intersection(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), until: self.until.min(other.until) }
    }
}

/// A stretch of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisibilityQuery {
    /// [`ChainKey::list_id`](crate::ChainKey::list_id).
    pub list_id: Arc<str>,
    pub index: VisibilityIndex,
    /// Open runs that started in this range.
    pub open: TimeRange,
    /// Closed runs that closed in this range.
    pub closed: TimeRange,
    /// Only what comes later in the list.
    pub after: Option<ListPlace>,
    pub limit: usize,
}

impl VisibilityQuery {
    /// Whether a row belongs to the answer, the limit aside.
    pub fn admits(&self, run: &ListedRun) -> bool {
        let row = &run.row;
        let in_index = match &self.index {
            VisibilityIndex::Status { workflow_type, statuses, hidden } => {
                workflow_type.as_ref().is_none_or(|wanted| *wanted == row.workflow_type)
                    && statuses.contains(row.status)
                    && (*hidden == Hidden::With || !row.hidden)
            }
            VisibilityIndex::Keyword { name, value } => row.keywords.iter().any(|(n, v)| n == name && v == value),
        };
        let in_time = match row.close_time {
            None => self.open.contains(row.start_time),
            Some(at) => self.closed.contains(at),
        };
        in_index && in_time && self.after.as_ref().is_none_or(|after| run.place() > *after)
    }
}

/// Which ids to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdMatch {
    /// This workflow id.
    Is(Arc<str>),
    /// Workflow ids that start so.
    StartsWith(Arc<str>),
    /// This run id.
    Run(Arc<str>),
}

impl IdMatch {
    pub fn admits(&self, workflow_id: &str, run_id: &str) -> bool {
        match self {
            Self::Is(id) => **id == *workflow_id,
            Self::StartsWith(prefix) => workflow_id.starts_with(&**prefix),
            Self::Run(id) => **id == *run_id,
        }
    }
}

/// How many rows of one kind there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VisibilityCount {
    pub workflow_type: Arc<str>,
    pub status: Status,
    pub hidden: bool,
    pub count: u64,
}
