//! Where a run stands in the list, and what the indexes of a store have to agree with: the list of runs as a plain filter
//! over all rows.

use std::{collections::BTreeMap, sync::Arc};

use perdure_types::{ChainKey, Timestamp};

use crate::{IdMatch, ListedRun, VisibilityCount, VisibilityQuery, VisibilityRow};

/// What places a run in the list and its indexes: all of a row that its writer has to know to take it away again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub workflow_type: Arc<str>,
    pub start_time: Timestamp,
    /// `None`: among the open runs.
    pub close_time: Option<Timestamp>,
    pub keywords: Vec<(Arc<str>, Arc<str>)>,
}

impl Listing {
    pub fn of(row: &VisibilityRow) -> Self {
        Self {
            workflow_type: row.workflow_type.clone(),
            start_time: row.start_time,
            close_time: row.close_time,
            keywords: row.keywords.clone(),
        }
    }

    /// Whether it is among the closed runs, and the time that places it there.
    pub fn place(&self) -> (bool, Timestamp) {
        (self.close_time.is_some(), self.close_time.unwrap_or(self.start_time))
    }
}

/// All rows of a namespace, held in memory: what the indexes of a store have to agree with.
#[derive(Debug, Default)]
pub struct PlainRows(pub Vec<ListedRun>);

impl PlainRows {
    pub fn add(&mut self, chain: &ChainKey, run_id: &Arc<str>, row: VisibilityRow) {
        self.0.push(ListedRun { workflow_id: chain.workflow_id.clone(), run_id: run_id.clone(), row });
    }

    pub fn list(mut self, query: &VisibilityQuery) -> Vec<ListedRun> {
        self.0.retain(|run| query.admits(run));
        self.0.sort_by_cached_key(ListedRun::place);
        self.0.truncate(query.limit);
        self.0
    }

    pub fn find(mut self, ids: &IdMatch, limit: usize) -> Vec<ListedRun> {
        self.0.retain(|run| ids.admits(&run.workflow_id, &run.run_id));
        self.0.truncate(limit);
        self.0
    }

    pub fn counts(self) -> Vec<VisibilityCount> {
        let mut counts = BTreeMap::<_, u64>::new();
        for ListedRun { row, .. } in self.0 {
            *counts.entry((row.workflow_type, row.status, row.hidden)).or_default() += 1;
        }
        let counts = counts.into_iter();
        counts
            .map(|((workflow_type, status, hidden), count)| VisibilityCount { workflow_type, status, hidden, count })
            .collect()
    }
}
