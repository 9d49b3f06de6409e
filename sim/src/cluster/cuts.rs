//! Nodes that are cut off and gossip on: from the store, or from the calls of the others. The others take over what the node
//! has, and it comes back by itself.

use std::time::Duration;

use perdure_types::NodeId;
use tokio::{task::JoinSet, time::Instant};

use super::{Network, World, check, heal, homeless, leave};
use crate::simulation::{Plan, Report, lock, operate};

/// How soon a node knows that its store is silent, and the others that it cannot be called.
const STORE_SILENT_AFTER: Duration = Duration::from_secs(6);
const UNREACHED_AFTER: Duration = Duration::from_millis(5500);
/// How soon it is known that a cut is over.
const HEARD_WITHIN: Duration = Duration::from_millis(1300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    FromStore,
    /// Its calls get through, and those to it do not: what is sent to it goes nowhere.
    FromCalls,
}

/// Long after a cut is known, and before it is over, the others serve all shards, and calls through them succeed.
const LONG: Duration = Duration::from_secs(25);
const SERVED_AFTER: Duration = Duration::from_secs(18);

impl Network {
    fn mark(&self, id: &NodeId, mark: impl FnOnce(&mut super::Peer)) {
        if let Some(peer) = self.town().peers.get_mut(id) {
            mark(peer);
        }
        self.gossip();
    }
}

impl World {
    /// Returns at once; the cut ends by itself.
    pub(super) fn cut(&mut self, index: usize, cut: Cut, time: Duration) {
        let (id, store) = (self.nodes[index].id.clone(), self.nodes[index].store.clone());
        let network = self.network.clone();
        self.happened(match cut {
            Cut::FromStore => "cut from the store",
            Cut::FromCalls => "cut from calls",
        });
        tokio::spawn(async move {
            let known = match cut {
                Cut::FromStore => {
                    store.pause();
                    STORE_SILENT_AFTER
                }
                Cut::FromCalls => {
                    network.mark(&id, |peer| peer.is_mute = true);
                    UNREACHED_AFTER
                }
            };
            tokio::time::sleep(known.min(time)).await;
            if time > known {
                network.mark(&id, |peer| match cut {
                    Cut::FromStore => peer.is_silent = true,
                    Cut::FromCalls => peer.is_unreachable = true,
                });
                tokio::time::sleep(time - known).await;
            }
            if cut == Cut::FromStore {
                store.resume();
            }
            network.mark(&id, |peer| peer.is_mute = false);
            tokio::time::sleep(HEARD_WITHIN).await;
            network.mark(&id, |peer| (peer.is_silent, peer.is_unreachable) = (false, false));
        });
    }
}

/// Three nodes, each cut off in each way, one after the other.
pub async fn run_cuts(plan: Plan) -> Report {
    let mut world = World::new(plan);
    for _ in 0..3 {
        world.join().await;
    }
    // They begin well.
    settle(&world, Duration::from_secs(10)).await;
    let (mut operations, mut number) = (JoinSet::new(), 0);
    for (round, cut) in [Cut::FromStore, Cut::FromCalls].into_iter().cycle().take(6).enumerate() {
        let victim = round % 3;
        world.cut(victim, cut, LONG);
        let id = world.nodes[victim].id.clone();
        let began = Instant::now();
        while began.elapsed() < SERVED_AFTER {
            number += 1;
            let (kind, workflow) = (world.chance.below(10), world.chance.below(world.plan.workflows));
            let through = world.chance.below(3) as usize;
            let client = world.nodes[through].node.client();
            operations.spawn(operate(client, world.oracle.clone(), kind, workflow, number));
            let pause = Duration::from_millis(world.chance.below(1000));
            settle(&world, pause).await;
        }
        served_without(&world, &id, cut).await;
        settle(&world, LONG).await;
        let homeless = homeless(&world.network);
        if !homeless.is_empty() {
            lock(&world.oracle).violation(format!("{cut:?}: {homeless:?} are not where they should be again"));
        }
    }
    operations.join_all().await;
    heal(&mut world).await;
    let client = world.nodes[0].node.client();
    check(&world, &client).await;
    leave(&mut world).await;
    world.into_report()
}

/// Time goes by, and news go round.
async fn settle(world: &World, time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let step = left.min(Duration::from_millis(200));
        tokio::time::sleep(step).await;
        left -= step;
        world.network.gossip();
    }
}

/// Every workflow can be reached through another node, though one is cut off.
async fn served_without(world: &World, id: &NodeId, cut: Cut) {
    let Some(other) = world.nodes.iter().find(|running| running.id != *id) else { return };
    let client = other.node.client();
    let runs = lock(&world.oracle).runs.clone();
    for (workflow, run) in runs {
        // The store has faults of its own: it is asked again.
        let read = async {
            while client.history(&workflow, &run, 0).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(3), read).await.is_err() {
            lock(&world.oracle).violation(format!("{cut:?} of {id}: {workflow} is out of reach"));
        }
    }
}
