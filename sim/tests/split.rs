//! Shards that are split while they are served (S1 to S3).

use std::{sync::Arc, time::Duration};

use perdure_persistence::{
    Store,
    simulated::{Faults, Simulated},
};
use perdure_proto::temporal::api::enums::v1::EventType;
use perdure_sim::{Node, Options, Script};
use perdure_types::{ShardId, SlotCount, Timestamp};
use tokio::time::Instant;

const SLOTS: u32 = 4;

fn slots(count: u32) -> SlotCount {
    SlotCount::new(count).expect("a power of two")
}

fn options(seed: u64) -> Options {
    let script = Script { sleep: Duration::from_secs(3600), ..Script::default() };
    let mut options = Options { slots: SLOTS, script, ..Options::default() };
    options.config.seed = Some(seed);
    options.config.flush_interval = Duration::from_secs(1);
    // Most workflows are known by their wake-ups only.
    options.config.cache_bytes = 1;
    options.config.wakeups_ahead = 3;
    options
}

async fn node(store: &Simulated, options: Options) -> Node {
    Node::start(Arc::new(store.clone()), options).await.expect("starts")
}

/// Waits until there are so many shards.
async fn split_into(node: &Node, count: u32) {
    let began = Instant::now();
    while node.layout().await.expect("a layout").map.slots < Some(slots(count)) {
        assert!(began.elapsed() < Duration::from_secs(120), "shards are not split: {:?}", node.layout().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_fails_and_nothing_is_lost_while_shards_are_split() {
    let store = Simulated::reliable();
    let began = Instant::now();
    let first = node(&store, options(1)).await;
    let client = first.client();
    let mut runs = Vec::new();
    for i in 0..60 {
        let kind = if i % 2 == 0 { "sleep" } else { "signals" };
        runs.push(client.start(&format!("w{i}"), kind).await.expect("starts"));
    }
    // Into the tables, and out of memory.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let layout = first.split(Some(slots(4 * SLOTS))).await.expect("wanted");
    assert_eq!((layout.map.slots, layout.goal), (Some(slots(SLOTS)), slots(4 * SLOTS)));
    let signals = tokio::spawn({
        let client = client.clone();
        async move {
            for round in 0..2 {
                for i in (1..60).step_by(2) {
                    client.signal(&format!("w{i}"), "s", &round.to_string()).await.expect("never fails");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    split_into(&first, 4 * SLOTS).await;
    signals.await.expect("no call failed");
    assert_eq!(store.list_shards().await.expect("rows").len(), 4 * SLOTS as usize);
    assert!(first.split(Some(slots(SLOTS))).await.is_err(), "shards are never merged");

    // All of it is there for the next owner, and sleepers are woken by the rows of before.
    first.crash().await;
    let mut later = options(2);
    later.start = Timestamp(later.start.0 + began.elapsed().as_nanos() as i64);
    let second = node(&store, later).await;
    let client = second.client();
    assert_eq!(second.layout().await.expect("a layout").map.slots, Some(slots(4 * SLOTS)));
    for (i, run) in runs.iter().enumerate().filter(|(i, _)| i % 2 == 1) {
        client.signal(&format!("w{i}"), "s", "2").await.expect("signals");
        client.close_event(&format!("w{i}"), run).await.expect("closes");
        let events = client.history(&format!("w{i}"), run, 0).await.expect("history");
        let signals = events.iter().filter(|e| e.event_type() == EventType::WorkflowExecutionSignaled).count();
        assert_eq!(signals, 3, "w{i}");
    }
    for (i, run) in runs.iter().enumerate().filter(|(i, _)| i % 2 == 0) {
        let close = client.close_event(&format!("w{i}"), run).await.expect("closes");
        assert_eq!(close.event_type(), EventType::WorkflowExecutionCompleted, "w{i}");
    }
    let waited = began.elapsed().as_secs();
    assert!((3600..3700).contains(&waited), "woken after {waited} s");

    // What was stored before the split has run dry: closed workflows keep a wake-up for their retention, in the new lanes.
    tokio::time::sleep(Duration::from_secs(30)).await;
    for shard in 0..SLOTS {
        let left = store.read_wakeups(ShardId(shard), None, Timestamp::MAX, 100).await.expect("read");
        assert_eq!(left, [], "shard {shard}");
    }
}

/// Whoever dies at whatever moment, the next one goes on; the store loses, delays and answers late.
#[tokio::test(start_paused = true)]
async fn a_split_goes_on_after_every_crash() {
    for seed in 0..12 {
        let store = Simulated::new(seed, Faults::some());
        let began = Instant::now();
        let mut runs = Vec::new();
        for life in 0..6_u64 {
            let mut now = options(seed << 8 | life);
            now.start = Timestamp(now.start.0 + began.elapsed().as_nanos() as i64);
            let Ok(node) = Node::start(Arc::new(store.clone()), now).await else { continue };
            let client = node.client();
            for i in 0..6 {
                let id = format!("w{life}-{i}");
                // No answer is no promise.
                if let Ok(run) = client.start(&id, "signals").await {
                    runs.push((id, run));
                }
            }
            // A fault of the store is no failure: the next life asks again.
            let _ = node.split(Some(slots(2 * SLOTS))).await;
            tokio::time::sleep(Duration::from_millis(40 + 97 * life + 13 * seed)).await;
            node.crash().await;
        }
        store.set_faults(Faults::none());
        store.deliver_all();
        let mut now = options(seed << 8 | 99);
        now.start = Timestamp(now.start.0 + began.elapsed().as_nanos() as i64);
        let node = node(&store, now).await;
        node.split(Some(slots(2 * SLOTS))).await.ok();
        split_into(&node, 2 * SLOTS).await;
        let client = node.client();
        for (id, run) in &runs {
            for signal in 0..3 {
                client.signal(id, "s", &signal.to_string()).await.expect("signals");
            }
            let close = client.close_event(id, run).await.expect("closes");
            assert_eq!(close.event_type(), EventType::WorkflowExecutionCompleted, "seed {seed}: {id}");
        }
        node.stop().await;
    }
}
