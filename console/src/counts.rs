//! How many runs have each status. Stores that keep no counts read rows for it, so an answer is used for a while: the longer,
//! the longer it took.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use perdure_proto::temporal::api::common::v1::Payload;
use tokio::time::{Instant, timeout};

use crate::ask::Asker;

const USED_FOR: Duration = Duration::from_secs(1);
/// As many times what it took.
const PER_EFFORT: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(3);
/// A count that did not come in time is not asked for again for so long.
const PAUSE: Duration = Duration::from_secs(300);
const MOST_KEPT: usize = 256;

/// By status, as the list language writes them. None: it would take too long.
pub type ByStatus = Option<Vec<(String, i64)>>;

#[derive(Default)]
pub struct Counts(Mutex<HashMap<String, (Instant, ByStatus)>>);

impl Counts {
    pub async fn of(&self, ask: &Asker<'_>, namespace: &str) -> ByStatus {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned();
        if let Some((until, counts)) = known
            && Instant::now() < until
        {
            return counts;
        }
        let begun = Instant::now();
        let answer = timeout(PATIENCE, ask.count(namespace, "GROUP BY ExecutionStatus")).await;
        let (counts, keep) = match answer {
            Ok(Ok(response)) => {
                let groups = response.groups.into_iter().filter_map(|group| {
                    let status = group.group_values.first().and_then(text)?;
                    Some((status, group.count))
                });
                (Some(groups.collect()), USED_FOR.max(begun.elapsed() * PER_EFFORT))
            }
            Ok(Err(_)) => return None,
            Err(_) => (None, PAUSE),
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(namespace.to_owned(), (begun + keep, Clone::clone(&counts)));
        counts
    }
}

fn text(payload: &Payload) -> Option<String> {
    serde_json::from_slice(&payload.data).ok()
}
