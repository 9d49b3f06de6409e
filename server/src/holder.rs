//! Who owns the shards of a cluster: for now one member, the *holder*, owns all of them, and the others forward to it. It is
//! the member that has been there longest, so that a new one moves nothing. When the holder goes, the next one fences its
//! session and takes all shards; when it drains, it stops them first.
//!
//! This stands in for owners of single shards, which the placement by the ring is made for already.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use perdure_cluster::{Membership, NodeId, Placement, Served};
use perdure_shard::{Setup, Shards};
use perdure_types::{Epoch, SlotCount};
use tokio::sync::{Notify, watch};

/// Between attempts to start when the store does not let us.
const PAUSE: Duration = Duration::from_millis(200);
/// Homes of task queues that move together make tasks be offered again once.
const GATHER: Duration = Duration::from_millis(200);

/// What other parts know of the holder's work.
#[derive(Clone, Default)]
pub struct Holding {
    serving: Arc<AtomicBool>,
    offer_again: Arc<Notify>,
}

impl Holding {
    /// A node that is the whole cluster.
    pub fn always() -> Self {
        let holding = Self::default();
        holding.serving.store(true, Ordering::SeqCst);
        holding
    }

    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::SeqCst)
    }

    /// Tasks that wait are offered to their queues again.
    pub fn offer_again(&self) {
        self.offer_again.notify_one();
    }
}

fn holder(placement: &Placement) -> Option<&NodeId> {
    // Empty while this node does not know the others, or is cut off from them.
    if placement.owners.is_empty() {
        return None;
    }
    let candidates = placement.members.iter().filter(|(_, member)| !member.draining);
    candidates.min_by_key(|(node, member)| (member.generation, (*node).clone())).map(|(node, _)| node)
}

/// Serves the shards whenever this node is the holder; until membership ends.
pub async fn keep(
    shards: Shards,
    setup: impl Fn() -> Setup,
    slots: SlotCount,
    membership: Membership,
    holding: Holding,
) {
    let (tell, told) = watch::channel(Served::default());
    membership.tell_served(told);
    let mut placement = membership.placement();
    loop {
        let is_mine = holder(&placement.borrow_and_update()) == Some(membership.me());
        match (is_mine, holding.is_serving()) {
            (true, false) => match shards.start(setup()).await {
                Ok(()) => {
                    tracing::info!("this node holds the shards");
                    holding.serving.store(true, Ordering::SeqCst);
                    let epoch = Epoch(u64::try_from((membership.config().clock)() / 1_000_000).unwrap_or(0));
                    let shards = slots.shards().map(|shard| (shard, epoch)).collect();
                    tell.send_replace(Served { session: None, shards });
                }
                Err(error) => {
                    tracing::warn!(%error, "the shards cannot be taken over, trying again");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
            (false, true) => stop(&shards, &tell, &holding).await,
            (true, true) | (false, false) => {}
        }
        tokio::select! {
            changed = placement.changed() => if changed.is_err() { return },
            () = holding.offer_again.notified(), if holding.is_serving() => {
                tokio::time::sleep(GATHER).await;
                // What is loaded again is offered again.
                stop(&shards, &tell, &holding).await;
            }
        }
    }
}

async fn stop(shards: &Shards, tell: &watch::Sender<Served>, holding: &Holding) {
    tell.send_replace(Served { session: None, shards: BTreeMap::new() });
    holding.serving.store(false, Ordering::SeqCst);
    shards.stop().await;
    tracing::info!("this node holds the shards no more");
}
