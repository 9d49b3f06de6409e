//! Rows under conditional writes: settings, namespaces, sessions, shards.
//!
//! A condition that is meant to fail never holds later either: a proposal of unknown outcome would then be decided (G3).

use bytes::Bytes;
use futures::future::join_all;
use perdure_types::{Epoch, Position, Seq, SessionId, ShardId, SlotCount};
use uuid::Uuid;

use super::patient::{Patient, until_done};
use crate::{Cas, ClusterSettings, NamespaceRow, SessionRow, SessionState, ShardRow, Source, Split, Store, StoreError};

fn session_id(n: u128) -> SessionId {
    SessionId(Uuid::from_u128(n))
}

fn session(state: SessionState, base: u64) -> SessionRow {
    SessionRow { state, base: Seq(base), base_segment: 7 }
}

pub(super) async fn settings_are_written_once<S: Store>(store: &Patient<S>) {
    let slots = |count| SlotCount::new(count).expect("a power of two");
    let first = ClusterSettings { cluster_id: "first".into(), slots: slots(64), schema_version: 1 };
    let second = ClusterSettings { cluster_id: "second".into(), slots: slots(128), schema_version: 2 };
    let propose = async |proposal: &ClusterSettings| {
        loop {
            match store.0.cluster_settings(proposal.clone()).await {
                Ok(settings) => return settings,
                Err(StoreError::Unavailable(_) | StoreError::Indeterminate(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    assert_eq!(propose(&first).await, first);
    assert_eq!(propose(&second).await, first);
}

pub(super) async fn namespaces_are_written_by_version<S: Store>(store: &Patient<S>) {
    let row = |version, record: &'static str| NamespaceRow {
        id: "id".into(),
        name: "name".into(),
        record: Bytes::from_static(record.as_bytes()),
        version,
    };
    assert_eq!(store.cas_namespace(Some(9), &row(10, "too early")).await, Cas::Rejected(None));
    assert_eq!(store.cas_namespace(None, &row(1, "created")).await, Cas::Applied);
    assert_eq!(store.cas_namespace(None, &row(1, "again")).await, Cas::Rejected(Some(row(1, "created"))));
    assert_eq!(store.cas_namespace(Some(1), &row(2, "updated")).await, Cas::Applied);
    assert_eq!(store.cas_namespace(Some(1), &row(2, "too late")).await, Cas::Rejected(Some(row(2, "updated"))));
    let other = NamespaceRow { id: "other id".into(), name: "other".into(), record: Bytes::new(), version: 1 };
    assert_eq!(store.cas_namespace(None, &other).await, Cas::Applied);
    let mut all = until_done(async || store.0.list_namespaces().await).await;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(all, [row(2, "updated"), other]);
}

pub(super) async fn sessions_are_written_by_condition<S: Store>(store: &Patient<S>) {
    let id = session_id(1);
    let live = session(SessionState::Live, 1);
    let fenced = session(SessionState::Fenced, 1);
    let sealed = session(SessionState::Sealed(Seq(99)), 1);
    assert_eq!(until_done(async || store.0.read_session(id).await).await, None);
    assert_eq!(until_done(async || store.0.read_session_serial(id).await).await, None);
    assert_eq!(
        store.cas_session(id, Some(session(SessionState::Live, 999)), fenced.clone()).await,
        Cas::Rejected(None)
    );

    let mut before = None;
    for row in [live.clone(), fenced.clone(), sealed.clone()] {
        assert_eq!(store.cas_session(id, before, row.clone()).await, Cas::Applied);
        assert_eq!(until_done(async || store.0.read_session(id).await).await.as_ref(), Some(&row));
        assert_eq!(until_done(async || store.0.read_session_serial(id).await).await.as_ref(), Some(&row));
        before = Some(row);
    }
    // Not from a state that was, and not though only the base differs.
    let other = session(SessionState::Sealed(Seq(5)), 1);
    assert_eq!(store.cas_session(id, Some(fenced), other.clone()).await, Cas::Rejected(Some(sealed.clone())));
    let based = session(SessionState::Sealed(Seq(99)), 2);
    assert_eq!(store.cas_session(id, Some(based), other).await, Cas::Rejected(Some(sealed.clone())));

    let second = session_id(2);
    assert_eq!(store.cas_session(second, None, live.clone()).await, Cas::Applied);
    let mut all = until_done(async || store.0.list_sessions().await).await;
    all.sort_by_key(|(id, _)| *id);
    assert_eq!(all, [(id, sealed), (second, live)]);
}

pub(super) async fn one_of_many_creates_the_session<S: Store>(store: &Patient<S>) {
    let id = session_id(3);
    let contenders = (1..=32).map(|base| async move {
        matches!(store.cas_session(id, None, session(SessionState::Live, base)).await, Cas::Applied).then_some(base)
    });
    let winners: Vec<u64> = join_all(contenders).await.into_iter().flatten().collect();
    let stored = until_done(async || store.0.read_session(id).await).await.expect("somebody wrote it");
    assert_eq!(winners, [stored.base.0]);
}

pub(super) async fn a_sealed_session_is_deleted<S: Store>(store: &Patient<S>) {
    let id = session_id(4);
    let sealed = session(SessionState::Sealed(Seq(1)), 2);
    assert_eq!(store.cas_session(id, None, sealed.clone()).await, Cas::Applied);
    let live = session(SessionState::Live, 2);
    assert_eq!(store.0.delete_session(id, live).await.expect("available"), Cas::Rejected(Some(sealed.clone())));
    assert_eq!(store.0.delete_session(id, sealed.clone()).await.expect("available"), Cas::Applied);
    assert_eq!(until_done(async || store.0.read_session(id).await).await, None);
    assert_eq!(until_done(async || store.0.read_session_serial(id).await).await, None);
    assert!(until_done(async || store.0.list_sessions().await).await.is_empty());
    assert_eq!(store.0.delete_session(id, sealed).await.expect("available"), Cas::Rejected(None));
}

pub(super) async fn shards_are_written_by_condition<S: Store>(store: &Patient<S>) {
    let id = ShardId(5);
    let source = |session, from, until| Source { session: session_id(session), from: Seq(from), until };
    let first = ShardRow {
        owner: Some(session_id(u128::MAX)),
        epoch: Epoch(1),
        checkpoint: Position { epoch: Epoch(1), seq: Seq(17) },
        sources: [(Epoch(1), source(u128::MAX, 1, None))].into(),
        split: None,
    };
    let second = ShardRow {
        owner: None,
        epoch: Epoch(2),
        checkpoint: Position { epoch: Epoch(2), seq: Seq(3) },
        sources: [(Epoch(1), source(1, 1, Some(Seq(40)))), (Epoch(2), source(2, 9, None))].into(),
        split: None,
    };
    assert_eq!(until_done(async || store.0.read_shard_serial(id).await).await, None);
    assert_eq!(store.cas_shard(id, None, first.clone()).await, Cas::Applied);
    assert_eq!(store.cas_shard(id, None, second.clone()).await, Cas::Rejected(Some(first.clone())));
    assert_eq!(store.cas_shard(id, Some(first.clone()), second.clone()).await, Cas::Applied);
    assert_eq!(store.cas_shard(id, Some(first), ShardRow::default()).await, Cas::Rejected(Some(second.clone())));
    assert_eq!(until_done(async || store.0.read_shard_serial(id).await).await, Some(second.clone()));

    assert_eq!(store.cas_shard(ShardId(1), None, ShardRow::default()).await, Cas::Applied);
    let mut all = until_done(async || store.0.list_shards().await).await;
    all.sort_by_key(|(id, _)| *id);
    assert_eq!(all, [(ShardId(1), ShardRow::default()), (id, second)]);
}

pub(super) async fn halves_of_shards_are_written_by_condition<S: Store>(store: &Patient<S>) {
    let id = ShardId(5);
    let source = Source { session: session_id(1), from: Seq(1), until: None };
    let half = Split { slots: SlotCount::new(128).expect("a power of two"), epoch: Epoch(1), sibling: None };
    let upper = ShardRow {
        owner: Some(session_id(1)),
        epoch: Epoch(2),
        sources: [(Epoch(2), source)].into(),
        split: Some(half.clone()),
        ..ShardRow::default()
    };
    let whole = ShardRow { epoch: Epoch(1), ..ShardRow::default() };
    let lower = ShardRow { split: Some(Split { sibling: Some(Box::new(upper.clone())), ..half }), ..upper.clone() };
    assert_eq!(store.cas_shard(id, None, whole.clone()).await, Cas::Applied);
    assert_eq!(store.cas_shard(id, Some(whole.clone()), lower.clone()).await, Cas::Applied);
    assert_eq!(until_done(async || store.0.read_shard_serial(id).await).await, Some(lower.clone()));
    assert_eq!(store.cas_shard(id, Some(upper.clone()), whole).await, Cas::Rejected(Some(lower.clone())));
    assert_eq!(store.cas_shard(id, Some(lower), upper.clone()).await, Cas::Applied);
    assert_eq!(until_done(async || store.0.list_shards().await).await, [(id, upper)]);
}

pub(super) async fn the_goal_is_written_by_condition<S: Store>(store: &Patient<S>) {
    let slots = |count| SlotCount::new(count).expect("a power of two");
    let read = async || until_done(async || store.0.read_goal().await).await;
    let settle = async |expected, new| {
        loop {
            match store.0.cas_goal(expected, new).await {
                Ok(outcome) => return outcome,
                // Each value is proposed once here, so one that stands there is ours.
                Err(_) if read().await == Some(new) => return Cas::Applied,
                Err(_) => {}
            }
        }
    };
    assert_eq!(read().await, None);
    assert!(settle(None, slots(128)).await != Cas::Rejected(None));
    assert_eq!(read().await, Some(slots(128)));
    assert_eq!(settle(Some(slots(512)), slots(1024)).await, Cas::Rejected(Some(slots(128))));
    assert!(settle(Some(slots(128)), slots(256)).await != Cas::Rejected(None));
    assert_eq!(read().await, Some(slots(256)));
}

pub(super) async fn racing_claims_raise_the_epoch_one_by_one<S: Store>(store: &Patient<S>) {
    const CLAIMS: usize = 8;
    let id = ShardId(0);
    let claimants = (1..=4u128).map(|claimant| async move {
        let (mut won, mut seen) = (Vec::new(), None::<ShardRow>);
        while won.len() < CLAIMS {
            let epoch = seen.as_ref().map_or(Epoch(1), |row| Epoch(row.epoch.0 + 1));
            let claim = ShardRow { owner: Some(session_id(claimant)), epoch, ..ShardRow::default() };
            match store.cas_shard(id, seen.clone(), claim.clone()).await {
                Cas::Applied => {
                    won.push(epoch);
                    seen = Some(claim);
                }
                Cas::Rejected(stored) => {
                    assert_ne!(stored, seen, "rejected though the condition holds");
                    seen = stored;
                }
            }
        }
        won
    });
    let mut won: Vec<_> = join_all(claimants).await.into_iter().flatten().collect();
    let last = until_done(async || store.0.read_shard_serial(id).await).await.expect("claimed");
    won.sort();
    assert!(won.windows(2).all(|pair| pair[0] < pair[1]), "an epoch was claimed twice: {won:?}");
    assert_eq!(won.last(), Some(&last.epoch));
}
