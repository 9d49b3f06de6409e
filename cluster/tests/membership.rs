//! Several members in one process, over real datagrams on loopback.

#![allow(clippy::unwrap_used)] // Helpers too: clippy knows only test functions as tests.

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{Table, fast, wait_for};
use perdure_cluster::{MemberRow, Membership, NodeId, Served, Settle};
use perdure_types::{Epoch, SessionId, ShardId};

async fn join(table: &Table) -> Membership {
    Membership::join(fast("cluster"), table.shared()).await.unwrap()
}

fn owners(member: &Membership) -> BTreeSet<NodeId> {
    member.placement().borrow().owners.iter().cloned().collect()
}

async fn agree(members: &[&Membership]) -> Duration {
    let began = tokio::time::Instant::now();
    let expected: BTreeSet<NodeId> = members.iter().map(|member| member.me().clone()).collect();
    wait_for("all agree", || {
        let first = members[0].placement().borrow().owners.clone();
        members.iter().all(|member| member.placement().borrow().owners == first && owners(member) == expected)
    })
    .await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_find_each_other_in_the_table_and_agree() {
    let table = Table::default();
    let a = join(&table).await;
    agree(&[&a]).await;
    let (b, c) = (join(&table).await, join(&table).await);
    agree(&[&a, &b, &c]).await;
    b.leave().await;
    let took = agree(&[&a, &c]).await;
    assert!(took < Duration::from_millis(700), "a goodbye is heard at once, not after {took:?}");
    c.crash().await;
    let took = agree(&[&a]).await;
    assert!(took < Duration::from_secs(4), "{took:?} to see a death");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_serves_and_its_drain_are_heard() {
    let table = Table::default();
    let (a, b) = (join(&table).await, join(&table).await);
    agree(&[&a, &b]).await;
    let session = SessionId::parse("0192d3c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d");
    let served = Served { session, shards: [(ShardId(3), Epoch(7))].into(), ..Served::default() };
    let (_tell, told) = tokio::sync::watch::channel(served);
    b.tell_served(told);
    let session_of_b = || a.placement().borrow().members.get(b.me()).and_then(|member| member.session);
    wait_for("the session", || session_of_b() == session).await;
    b.drain().await;
    wait_for("the drain", || owners(&a) == BTreeSet::from([a.me().clone()])).await;
    wait_for("its own drain", || owners(&b) == BTreeSet::from([a.me().clone()])).await;
    b.crash().await;
    wait_for("the dead session", || a.placement().borrow().dead.iter().copied().eq(session)).await;
}

/// It gossips on, and has its place again when the store is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_store_is_silent_gives_up_its_place() {
    let table = Table::default();
    let its_own = table.for_node();
    let (a, b) = (join(&table).await, join(&its_own).await);
    agree(&[&a, &b]).await;
    its_own.cut(true);
    let only_a = BTreeSet::from([a.me().clone()]);
    wait_for("both to know", || owners(&a) == only_a && owners(&b) == only_a).await;
    assert!(a.placement().borrow().members[b.me()].silent);
    assert!(a.placement().borrow().dead.is_empty(), "it is not taken for dead");
    its_own.cut(false);
    agree(&[&a, &b]).await;
    assert!(!a.placement().borrow().members[b.me()].silent);
}

/// Nobody would be better off.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_silent_for_all_moves_nothing() {
    let table = Table::default();
    let connections = [table.for_node(), table.for_node()];
    let (a, b) = (join(&connections[0]).await, join(&connections[1]).await);
    agree(&[&a, &b]).await;
    let before = owners(&a);
    connections.iter().for_each(|table| table.cut(true));
    let silent = |member: &Membership| member.placement().borrow().members.values().filter(|m| m.silent).count();
    let (mut news, until) = (a.placement(), tokio::time::Instant::now() + Duration::from_secs(7));
    while tokio::time::timeout_at(until, news.changed()).await.is_ok() {
        // Who hears of it first may see one that is silent alone, for a moment.
    }
    assert_eq!((owners(&a), owners(&b)), (before.clone(), before));
    assert_eq!((silent(&a), silent(&b)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_replaces_itself() {
    let table = Table::default();
    let a = join(&table).await;
    let config = fast("cluster");
    let first = Membership::join(config.clone(), table.shared()).await.unwrap();
    agree(&[&a, &first]).await;
    first.crash().await;
    // The port is free again a moment later.
    let again = loop {
        match Membership::join(config.clone(), table.shared()).await {
            Ok(again) => break again,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_ne!(first.me(), again.me());
    agree(&[&a, &again]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_do_not_mix() {
    let table = Table::default();
    let a = join(&table).await;
    agree(&[&a]).await;
    // It has a left-over row with the address of a member of the other cluster, and greets it.
    let other_table = Table::default();
    let row = table.shared().list().await.unwrap().remove(0);
    other_table.shared().put(MemberRow { beat: 0, ..row }, Duration::ZERO).await.unwrap();
    let stranger = Membership::join(fast("another"), other_table.shared()).await.unwrap();
    let b = join(&table).await;
    agree(&[&a, &b]).await;
    agree(&[&stranger]).await;
    assert_eq!(owners(&a).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_start_together_take_their_places_once() {
    let table = Table::default();
    let configs: Vec<_> = (0..5).map(|_| fast("cluster")).collect();
    let joins = configs.into_iter().map(|mut config| {
        config.settle = Settle { join: Duration::from_millis(300), start: Duration::from_millis(1500) };
        Membership::join(config, table.shared())
    });
    let members: Vec<Membership> = futures::future::try_join_all(joins).await.unwrap();
    agree(&members.iter().collect::<Vec<_>>()).await;
}
