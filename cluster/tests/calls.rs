//! Calls between nodes: several in one process, over real connections on loopback. Their shards and task queues are small
//! ones of the tests.

#![allow(clippy::unwrap_used)] // Helpers too: clippy knows only test functions as tests.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{
    Table, fast_at,
    node::{activity_of, poll, poll_activity, signal, start_cluster},
    wait_for,
};
use perdure_cluster::Membership;
use perdure_proto::Code;

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_any_call_and_the_owner_carries_it_out() {
    let nodes = start_cluster(&Table::default(), 3).await;
    for i in 0..50 {
        for node in &nodes {
            node.cluster.workflow(&signal(&format!("w{i}"))).await.unwrap();
        }
    }
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for node in &nodes {
        for (workflow, count) in node.shards.calls() {
            assert_eq!(count, 3, "{workflow} has one owner");
            *owners.entry(node.name()).or_default() += 1;
        }
    }
    assert_eq!((owners.len(), owners.values().sum::<usize>()), (3, 50), "{owners:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_come_back_as_they_are() {
    let nodes = start_cluster(&Table::default(), 2).await;
    for node in &nodes {
        for i in 0..8 {
            let error = node.cluster.workflow(&signal(&format!("missing-{i}"))).await.unwrap_err();
            assert_eq!((error.grpc_code(), error.message.as_str()), (Code::NotFound, "no such workflow"));
            assert!(error.detail.is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_while_a_shard_moves() {
    let nodes = start_cluster(&Table::default(), 2).await;
    // Nobody serves anything for a moment.
    nodes.iter().for_each(|node| node.shards.pause(true));
    let cluster = nodes[0].cluster.clone();
    let calls: Vec<_> = (0..20)
        .map(|i| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.workflow(&signal(&format!("w{i}"))).await })
        })
        .collect();
    wait_for("all calls to be refused once", || nodes.iter().map(|node| node.shards.refused()).sum::<usize>() >= 20)
        .await;
    nodes.iter().for_each(|node| node.shards.pause(false));
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_followed() {
    let nodes = start_cluster(&Table::default(), 2).await;
    // The ring names one node, and the other serves all.
    let [one, two] = &nodes[..] else { unreachable!() };
    one.shards.give_all_to(two);
    for i in 0..20 {
        one.cluster.workflow(&signal(&format!("w{i}"))).await.unwrap();
        two.cluster.workflow(&signal(&format!("w{i}"))).await.unwrap();
    }
    assert_eq!(one.shards.calls().len(), 0);
    assert_eq!(two.shards.calls().values().sum::<usize>(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_and_polls_meet_at_the_home_from_any_node() {
    let nodes = start_cluster(&Table::default(), 3).await;
    for i in 0..20 {
        let queue = format!("q{i}");
        nodes[i % 3].offer(&queue).await.unwrap();
        let task = nodes[(i + 1) % 3].cluster.matching(poll(&queue, 5000)).await.unwrap();
        assert!(common::node::has_task(&task), "{queue}");
    }
    assert!(nodes.iter().all(|node| node.matching.polls() > 0), "the queues have different homes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_poll_is_taken_back_at_its_home() {
    let nodes = start_cluster(&Table::default(), 2).await;
    let (queue, home) = common::node::queue_of(&nodes, 1).await;
    let waiting = tokio::spawn({
        let cluster = nodes[0].cluster.clone();
        let poll = poll(&queue, 60_000);
        async move { cluster.matching(poll).await }
    });
    wait_for("the poll to wait", || home.matching.waiting() == 1).await;
    waiting.abort();
    wait_for("the poll to be gone", || home.matching.waiting() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_went_to_a_node_that_vanished_is_offered_again() {
    let mut nodes = start_cluster(&Table::default(), 2).await;
    let (queue, _) = common::node::queue_of(&nodes, 1).await;
    nodes[1].offer(&queue).await.unwrap();
    let task = nodes[0].cluster.matching(poll(&queue, 5000)).await.unwrap();
    assert!(common::node::has_task(&task));
    nodes.remove(0).crash().await;
    wait_for("the task to be given back", || nodes[0].shards.undelivered() == 1).await;
}

/// Two that may be tried again, of which one was handed on, and one that may not.
#[tokio::test(flavor = "multi_thread")]
async fn an_activity_that_a_vanished_node_had_not_handed_on_is_offered_again() {
    let mut nodes = start_cluster(&Table::default(), 2).await;
    let (queue, _) = common::node::queue_of(&nodes, 1).await;
    let call = async |attempts| {
        let answer = nodes[0].cluster.matching(poll_activity(&queue, attempts)).await;
        activity_of(answer.unwrap())
    };
    let (token, handed_on) = call(0).await;
    nodes[0].cluster.handed_on(&token);
    let (_, once_only) = call(1).await;
    let (_, lost) = call(0).await;
    nodes.remove(0).crash().await;
    wait_for("the lost task to be given back", || nodes[0].shards.calls().contains_key(&lost)).await;
    assert!(!nodes[0].shards.calls().contains_key(&handed_on));
    assert!(!nodes[0].shards.calls().contains_key(&once_only));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_home_dies_polls_wait_elsewhere_and_offers_are_made_again() {
    let mut nodes = start_cluster(&Table::default(), 3).await;
    let (queue, _) = common::node::queue_of(&nodes, 2).await;
    nodes[1].offer(&queue).await.unwrap();
    nodes[1].offer(&queue).await.unwrap();
    let first = nodes[0].cluster.matching(poll(&queue, 5000)).await.unwrap();
    assert!(common::node::has_task(&first));
    let began = tokio::time::Instant::now();
    nodes.remove(2).crash().await;
    let second = nodes[0].cluster.matching(poll(&queue, 20_000)).await.unwrap();
    assert!(!common::node::has_task(&second) || began.elapsed() < Duration::from_secs(10));
    assert!(common::node::has_task(&second), "the offer was made again");
    assert!(nodes.iter().any(|node| node.shards.offered_again() > 0));
}

/// What was started for them is with no worker: all owners of shards hear of it.
#[tokio::test(flavor = "multi_thread")]
async fn polls_that_a_vanished_home_did_not_answer_are_told_of() {
    let mut nodes = start_cluster(&Table::default(), 3).await;
    let (queue, home) = common::node::queue_of(&nodes, 2).await;
    let answered = home.matching.names();
    let waiting: Vec<_> = (0..2)
        .map(|node| {
            let (cluster, poll) = (nodes[node].cluster.clone(), poll(&queue, 20_000));
            tokio::spawn(async move { cluster.matching(poll).await })
        })
        .collect();
    wait_for("the polls to wait", || home.matching.waiting() == 2).await;
    let lost: BTreeSet<u64> = home.matching.names().difference(&answered).copied().collect();
    assert!(lost.len() == 2 && !lost.contains(&0), "each has a name: {lost:?}");
    nodes.remove(2).crash().await;
    wait_for("all to hear of them", || nodes.iter().all(|node| node.shards.lost_polls() == lost)).await;
    // The polls themselves go on, under other names.
    wait_for("the polls to wait elsewhere", || nodes.iter().map(|node| node.matching.waiting()).sum::<usize>() == 2)
        .await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// It gossips, and takes connections, and answers none: as a node that hears and is not heard.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_be_called_loses_its_place() {
    let table = Table::default();
    let nodes = start_cluster(&table, 2).await;
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = fast_at("cluster", deaf.local_addr().unwrap());
    let member = Membership::join(config, table.shared()).await.unwrap();
    let owners = |member: &Membership| member.placement().borrow().owners.iter().cloned().collect::<BTreeSet<_>>();
    let is_away =
        |by: &Membership| by.placement().borrow().members.get(member.me()).is_some_and(|member| member.unreachable);
    let able: BTreeSet<_> = nodes.iter().map(|node| node.membership.me().clone()).collect();
    let knows = |by: &Membership| is_away(by) && owners(by) == able;
    wait_for("all to know", || knows(&member) && nodes.iter().all(|node| knows(&node.membership))).await;
    for i in 0..20 {
        nodes[0].cluster.workflow(&signal(&format!("w{i}"))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_noticed_by_its_closed_port() {
    let mut nodes = start_cluster(&Table::default(), 3).await;
    let began = tokio::time::Instant::now();
    nodes.remove(2).crash().await;
    wait_for("the others to know", || nodes.iter().all(|node| node.membership.placement().borrow().members.len() == 2))
        .await;
    let took = began.elapsed();
    assert!(took < Duration::from_millis(700), "{took:?}: much less than a silence takes");
}
