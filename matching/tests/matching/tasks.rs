//! Tasks and polls.

use std::{collections::BTreeSet, sync::Arc, task::Poll, time::Duration};

use crate::common::*;
use perdure_proto::{
    Error, perdure::node::v1::TaskKind, temporal::api::workflowservice::v1::PollWorkflowTaskQueueResponse,
};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn an_offer_meets_a_waiting_poll() {
    let (matching, shard) = setup();
    let waiting = tokio::spawn({
        let matching = matching.clone();
        async move { poll(&matching, workflow_poll("q")).await }
    });
    settle().await;
    let before = Instant::now();
    assert!(offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await);
    let task = waiting.await.unwrap();
    assert_eq!((run_of(&task), task.attempt, task.backlog_count_hint), ("a", 1, 0));
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_poll_takes_from_the_backlog_of_its_queue_only() {
    let (matching, shard) = setup();
    offer(&matching, &shard, task(TaskKind::Workflow, "other", "x")).await;
    offer(&matching, &shard, task(TaskKind::Activity, "q", "b")).await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "c")).await;
    let first = poll(&matching, workflow_poll("q")).await;
    assert_eq!((run_of(&first), first.backlog_count_hint), ("a", 1));
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "c");
    let activity = poll_activity(&matching, activity_poll("q", None)).await;
    assert_eq!(activity.workflow_execution.unwrap().run_id, "b");
    assert_eq!(poll(&matching, workflow_poll("q")).await, PollWorkflowTaskQueueResponse::default());
}

#[tokio::test(start_paused = true)]
async fn an_empty_poll_ends_with_its_caller_or_the_long_poll() {
    let (matching, _) = setup();
    for (timeout_ns, seconds) in [(0, 60), (5_000_000_000, 5), (100_000_000_000, 60)] {
        let before = Instant::now();
        let answer = poll_within(&matching, workflow_poll("q"), timeout_ns).await;
        assert_eq!(answer, PollWorkflowTaskQueueResponse::default());
        let elapsed = before.elapsed();
        assert!(elapsed >= Duration::from_secs(seconds) && elapsed < Duration::from_secs(seconds + 1), "{elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_vanished_poll_takes_no_task() {
    let (matching, shard) = setup();
    let gone = tokio::spawn({
        let matching = matching.clone();
        async move { poll(&matching, workflow_poll("q")).await }
    });
    settle().await;
    gone.abort();
    settle().await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    settle().await;
    assert_eq!(shard.starts(), 0);
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "a");
    assert_eq!(shard.undelivered(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanishes_while_its_task_starts_loses_nothing() {
    let (matching, shard) = setup();
    close_gate(&shard);
    let gone = tokio::spawn({
        let matching = matching.clone();
        async move { poll(&matching, workflow_poll("q")).await }
    });
    settle().await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    settle().await;
    gone.abort();
    settle().await;
    shard.gate.add_permits(100);
    settle().await;
    assert_eq!((shard.starts(), shard.undelivered()), (1, 1));
    let before = Instant::now();
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "a");
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_reads_goes_back() {
    let (matching, shard) = setup();
    {
        let mut unread = Box::pin(poll(&matching, workflow_poll("q")));
        std::future::poll_fn(|context| {
            assert!(unread.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
        settle().await;
        assert_eq!((shard.starts(), shard.undelivered()), (1, 0));
    }
    settle().await;
    assert_eq!(shard.undelivered(), 1);
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "a");
}

#[tokio::test(start_paused = true)]
async fn an_obsolete_offer_is_skipped() {
    let (matching, shard) = setup();
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "b")).await;
    shard.forget("a");
    let before = Instant::now();
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "b");
    assert_eq!((before.elapsed(), shard.starts()), (Duration::ZERO, 2));
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_shard_is_asked_again() {
    let (matching, shard) = setup();
    for _ in 0..3 {
        shard.fail("a", Error::unavailable("shard is moving"));
    }
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "b")).await;
    let before = Instant::now();
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "b");
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "a");
    assert_eq!(shard.starts(), 5);
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_poll_whose_shard_stays_away_ends_in_time() {
    let (matching, shard) = setup();
    for _ in 0..100_000 {
        shard.fail("a", Error::unavailable("shard is moving"));
    }
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    let before = Instant::now();
    let answer = poll_within(&matching, workflow_poll("q"), 8_000_000_000).await;
    assert_eq!(answer, PollWorkflowTaskQueueResponse::default());
    assert!(before.elapsed() < Duration::from_secs(9), "{:?}", before.elapsed());
    assert!(shard.starts() < 20, "{} starts", shard.starts());
}

#[tokio::test(start_paused = true)]
async fn a_sticky_queue_needs_a_recent_poller() {
    let (matching, shard) = setup();
    assert!(!offer(&matching, &shard, sticky_task("s", "a")).await);
    let short = 1_000_000_000;
    poll_within(&matching, sticky_poll("s", "q"), short).await;
    assert!(offer(&matching, &shard, sticky_task("s", "b")).await);
    let got = poll(&matching, sticky_poll("s", "q")).await;
    assert_eq!(run_of(&got), "b");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(!offer(&matching, &shard, sticky_task("s", "c")).await);
    assert_eq!(shard.starts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_sticky_queue_of_a_dead_worker_is_refused_at_once() {
    let (matching, shard) = setup();
    let dies = tokio::spawn({
        let matching = matching.clone();
        async move { poll(&matching, sticky_poll("s", "q")).await }
    });
    settle().await;
    dies.abort();
    settle().await;
    assert!(!offer(&matching, &shard, sticky_task("s", "a")).await);
}

#[tokio::test(start_paused = true)]
async fn activities_go_out_at_the_rate_that_the_worker_set() {
    let (matching, shard) = setup();
    for i in 0..12 {
        offer(&matching, &shard, task(TaskKind::Activity, "q", &i.to_string())).await;
    }
    let before = Instant::now();
    for i in 0..12 {
        let task = poll_activity(&matching, activity_poll("q", Some(2.0))).await;
        assert_eq!(task.workflow_execution.unwrap().run_id, i.to_string());
    }
    // Two at once, then two a second.
    let elapsed = before.elapsed();
    assert!(elapsed >= Duration::from_secs(5) && elapsed < Duration::from_millis(5_500), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn draining_ends_polls() {
    let (matching, _) = setup();
    let waiting = tokio::spawn({
        let matching = matching.clone();
        async move { poll(&matching, workflow_poll("q")).await }
    });
    settle().await;
    let before = Instant::now();
    matching.drain();
    assert_eq!(waiting.await.unwrap(), PollWorkflowTaskQueueResponse::default());
    assert_eq!(poll(&matching, workflow_poll("q")).await, PollWorkflowTaskQueueResponse::default());
    assert!(query(&matching, "q", false, 0).await.is_err());
    assert_eq!(before.elapsed(), Duration::ZERO);
}

/// Clients vanish at any moment on several threads: each task is delivered in the end, and to one client only.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn impatient_clients_lose_no_task() {
    const TASKS: usize = 300;
    let (matching, shard) = setup();
    let offers = tokio::spawn({
        let (matching, shard) = (matching.clone(), Arc::clone(&shard));
        async move {
            for i in 0..TASKS {
                if i % 7 == 0 {
                    shard.fail(&i.to_string(), Error::unavailable("shard is moving"));
                }
                offer(&matching, &shard, task(TaskKind::Workflow, "q", &i.to_string())).await;
                if i % 3 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let clients: Vec<_> = (0..8u64)
        .map(|client| {
            let matching = matching.clone();
            tokio::spawn(async move {
                let mut got = Vec::new();
                let mut empty = 0;
                let mut round = client as usize;
                while empty < 3 {
                    round += 1;
                    // Some polls are dropped at once, some in the middle, most are read.
                    let patience = [0, 30, 100, 700, 50_000, 50_000][round % 6];
                    let polled = poll_within(&matching, workflow_poll("q"), 300_000_000);
                    match tokio::time::timeout(Duration::from_micros(patience), polled).await {
                        Ok(task) if !task.task_token.is_empty() => {
                            got.push(run_of(&task).to_owned());
                            empty = 0;
                        }
                        Ok(_) | Err(_) => empty += usize::from(patience == 50_000),
                    }
                }
                got
            })
        })
        .collect();
    offers.await.unwrap();
    let mut delivered = Vec::new();
    for client in clients {
        delivered.extend(client.await.unwrap());
    }
    // What was still on its way back when the clients stopped.
    loop {
        let task = poll_within(&matching, workflow_poll("q"), 500_000_000).await;
        if task.task_token.is_empty() {
            break;
        }
        delivered.push(run_of(&task).to_owned());
    }
    let distinct: BTreeSet<_> = delivered.iter().collect();
    assert_eq!((delivered.len(), distinct.len()), (TASKS, TASKS));
}
