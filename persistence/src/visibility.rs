//! What the indexes of a store have to agree with: the list of runs as a plain filter over all rows.

use std::{collections::BTreeMap, sync::Arc};

use perdure_types::ChainKey;

use crate::{IdMatch, ListedRun, VisibilityCount, VisibilityQuery, VisibilityRow};

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
        self.0.retain(|run| ids.admits(&run.workflow_id));
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
