//! Queues that get another home.

use std::{sync::Arc, time::Duration};

use crate::common::*;
use perdure_proto::{
    Error,
    perdure::node::v1::{MatchingReply, PollWorkflowTask, TaskKind, matching_call::Command, matching_reply::Reply},
};

async fn raw_poll(matching: &perdure_matching::Matching, queue: &str) -> Result<MatchingReply, Error> {
    let command = Command::PollWorkflowTask(PollWorkflowTask { request: Some(workflow_poll(queue)) });
    matching.call(call(queue, command)).await
}

fn is_departed<T>(result: &Result<T, Error>) -> bool {
    result.as_ref().is_err_and(|error| error.as_not_owner().is_some())
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_a_departed_queue_is_sent_away_and_others_stay() {
    let (matching, _) = setup();
    let start = |queue: &'static str| {
        let matching = matching.clone();
        tokio::spawn(async move { raw_poll(&matching, queue).await })
    };
    let (departing, staying) = (start("departing"), start("staying"));
    let asked = tokio::spawn({
        let matching = matching.clone();
        // Nobody polls there, so that it waits.
        async move { query(&matching, "departing-too", false, 0).await }
    });
    settle().await;
    matching.depart(Arc::new(|namespace, queue| namespace == NAMESPACE && queue.starts_with("departing")));
    settle().await;
    assert!(is_departed(&departing.await.unwrap()));
    assert!(is_departed(&asked.await.unwrap()));
    assert!(!staying.is_finished());
    assert!(is_departed(&raw_poll(&matching, "departing").await), "also who comes later");
    assert!(is_departed(&query(&matching, "departing", false, 0).await));
}

#[tokio::test(start_paused = true)]
async fn offers_are_kept_for_a_home_that_comes_back_at_once() {
    let (matching, shard) = setup();
    matching.depart(Arc::new(|_, _| true));
    assert!(offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await);
    matching.depart(Arc::new(|_, _| false));
    let Ok(MatchingReply { reply: Some(Reply::WorkflowTask(task)) }) = raw_poll(&matching, "q").await else {
        panic!("no task")
    };
    assert_eq!(run_of(&task), "a");
}

#[tokio::test(start_paused = true)]
async fn offers_of_a_queue_that_stays_away_are_forgotten() {
    let (matching, shard) = setup();
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    matching.depart(Arc::new(|_, _| true));
    tokio::time::sleep(Duration::from_secs(200)).await;
    matching.depart(Arc::new(|_, _| false));
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "");
}
