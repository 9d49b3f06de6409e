//! Polls of this node that went to a task queue's home and get no answer, since the home is out of reach.
//!
//! A task may have been started for such a poll, by a shard of the same node even, and nobody else knows: its worker never
//! gets it, and an activity would wait for its whole timeout. But who sent the poll knows that no answer has come, and
//! that none will come over a link that is broken. It says so to all owners of shards, for some time, since they may be
//! recovering the shard just then; the request id of a start tells them for which poll it was. So the same attempt is offered
//! again at once, also of an activity that may run only once. A poll is repeated under another name.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::future::join_all;
use perdure_proto::perdure::node::v1::{LostPolls, ShardCall, shard_call};
use perdure_types::{NodeId, PollName};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep, sleep_until, timeout},
};

/// A node that vanishes breaks many polls at once: they are told of together.
const GATHER: Duration = Duration::from_millis(50);
const MOST_AT_ONCE: usize = 4096;
/// When owners of shards are told, after the link broke. Shards of a node that vanished are claimed meanwhile.
const TOLD_AFTER_MS: [u64; 9] = [0, 500, 1000, 1500, 2000, 3000, 5000, 9000, 15_000];
/// Who does not answer is told the next time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Names polls, and takes note of those that are lost.
pub(crate) struct PollNames {
    next: AtomicU64,
    me: NodeId,
    lost: mpsc::Sender<PollName>,
}

impl PollNames {
    /// The receiver is for [`tell`].
    pub(crate) fn new(me: NodeId) -> (Self, mpsc::Receiver<PollName>) {
        let (lost, told) = mpsc::channel(MOST_AT_ONCE);
        (Self { next: AtomicU64::new(0), me, lost }, told)
    }

    /// Unlike all others, of all nodes.
    pub(crate) fn next(&self) -> PollName {
        // A node's id is another one each time that it starts.
        let mut hasher = DefaultHasher::new();
        (self.me.as_str(), self.next.fetch_add(1, Ordering::Relaxed)).hash(&mut hasher);
        PollName::new(hasher.finish())
    }

    pub(crate) fn lost(&self, poll: PollName) {
        if let Err(TrySendError::Full(_)) = self.lost.try_send(poll) {
            tracing::warn!("too many polls are lost at once: tasks that were started for some wait for their timeouts");
        }
    }
}

/// Runs as long as [`PollNames`] is there. `owners`: to whom `call` gets, this node too.
pub(crate) async fn tell<F>(
    mut lost: mpsc::Receiver<PollName>,
    owners: impl Fn() -> Vec<NodeId> + Clone + Send + Sync + 'static,
    call: impl Fn(NodeId, ShardCall) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = ()> + Send,
{
    while let Some(first) = lost.recv().await {
        sleep(GATHER).await;
        let mut polls = vec![first.number()];
        while polls.len() < MOST_AT_ONCE
            && let Ok(poll) = lost.try_recv()
        {
            polls.push(poll.number());
        }
        tracing::info!(polls = polls.len(), "polls are lost: what was started for them is offered again");
        let command = Some(shard_call::Command::LostPolls(LostPolls { polls }));
        let message = ShardCall { command, ..ShardCall::default() };
        let (owners, call, began) = (owners.clone(), call.clone(), Instant::now());
        tokio::spawn(async move {
            for after in TOLD_AFTER_MS {
                sleep_until(began + Duration::from_millis(after)).await;
                let calls = owners().into_iter().map(|node| timeout(PATIENCE, call(node, message.clone())));
                join_all(calls).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_polls_have_one_name() {
        let names = |node: &str| {
            let (names, _told) = PollNames::new(NodeId::new(node));
            (0..1000).map(move |_| names.next()).collect::<Vec<_>>()
        };
        let all: BTreeSet<PollName> = ["a@1", "a@2", "b@1"].iter().flat_map(|node| names(node)).collect();
        assert_eq!(all.len(), 3000);
    }
}
