//! One run: what it is, which step it is on, how it came there, and all its events.

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use perdure_proto::temporal::api::{
    common::v1::WorkflowExecution,
    enums::v1::{PendingActivityState, PendingNexusOperationState, PendingWorkflowTaskState, WorkflowExecutionStatus},
    failure::v1::Failure,
    history::v1::{HistoryEvent, history_event::Attributes},
    workflow::v1::{PendingActivityInfo, PendingNexusOperationInfo, WorkflowExecutionInfo},
    workflowservice::v1::DescribeWorkflowExecutionResponse,
};

use crate::{
    Site,
    ask::Events,
    events::{self, Tone},
    format::{ago, badge, bytes, moment, nanos, number, plain, span},
    page::{self, Page, Place, link, part, problem, run_link},
    payload, timeline,
};

pub async fn show_current(
    State(site): State<Site>,
    headers: HeaderMap,
    Path((namespace, id)): Path<(String, String)>,
) -> Response {
    let execution = WorkflowExecution { workflow_id: id, run_id: String::new() };
    match site.asker(&headers).describe(&namespace, &execution).await {
        Ok(found) => {
            let run = found.workflow_execution_info.and_then(|info| info.execution).unwrap_or(execution);
            Redirect::to(&run_link(&namespace, &run.workflow_id, &run.run_id)).into_response()
        }
        Err(status) => page::refused(&status),
    }
}

/// Pages of the Web UI that are parts of this one.
pub async fn show_part(Path((namespace, id, run, _)): Path<(String, String, String, String)>) -> Redirect {
    Redirect::to(&run_link(&namespace, &id, &run))
}

pub async fn show(
    State(site): State<Site>,
    headers: HeaderMap,
    Path((namespace, workflow_id, run_id)): Path<(String, String, String)>,
) -> Response {
    let ask = site.asker(&headers);
    let execution = WorkflowExecution { workflow_id, run_id };
    let found = match ask.describe(&namespace, &execution).await {
        Ok(found) => found,
        Err(status) => return page::refused(&status),
    };
    let history = ask.events(&namespace, &execution).await;
    let info = found.workflow_execution_info.clone().unwrap_or_default();
    let is_open = matches!(
        WorkflowExecutionStatus::try_from(info.status),
        Ok(WorkflowExecutionStatus::Running | WorkflowExecutionStatus::Paused)
    );
    let now = ask.now();
    let content = html! {
        p.crumbs { a href=(link("/workflows", &[("namespace", &namespace)])) { "Workflows" } " in " (namespace) }
        h1.id { (execution.workflow_id) }
        (part("facts", &facts(&namespace, &info, now)))
        @match &history {
            Ok(history) => {
                @if is_open { (part("pending", &pending(&namespace, &found, &history.events, now))) }
                (part("timeline", &drawn(&info, &found, history, now)))
                (part("events", &listed(history, nanos(info.start_time.as_ref()).unwrap_or(now))))
            }
            Err(status) => { (problem(status.message())) }
        }
    };
    let page =
        Page { place: Place::Workflows, title: &execution.workflow_id, namespace: Some(&namespace), live: is_open };
    page.with(&content)
}

fn facts(namespace: &str, info: &WorkflowExecutionInfo, now: i64) -> Markup {
    let began = nanos(info.start_time.as_ref());
    let closed = nanos(info.close_time.as_ref());
    let took = began.map(|began| closed.unwrap_or(now).saturating_sub(began));
    let run_id = info.execution.as_ref().map_or("", |execution| execution.run_id.as_str());
    let parent = info.parent_execution.as_ref().filter(|parent| !parent.workflow_id.is_empty());
    let fact = |name: &str, value: Markup| html! { div { dt { (name) } dd { (value) } } };
    html! {
        dl.facts {
            (fact("Status", badge(info.status)))
            (fact("Type", html! { (info.r#type.as_ref().map_or("", |kind| kind.name.as_str())) }))
            (fact("Task queue", html! { (info.task_queue) }))
            (fact("Started", ago(began, now)))
            @if closed.is_some() { (fact("Closed", ago(closed, now))) }
            (fact(if closed.is_some() { "Took" } else { "Open for" }, html! { (took.map(span).unwrap_or_default()) }))
            (fact("History", html! { (number(info.history_length)) " events, " (bytes(info.history_size_bytes)) }))
            @if let Some(parent) = parent {
                (fact("Parent", html! {
                    a href=(run_link(namespace, &parent.workflow_id, &parent.run_id)) { (parent.workflow_id) }
                }))
            }
            @if !info.worker_deployment_name.is_empty() {
                (fact("Deployment", html! { (info.worker_deployment_name) }))
            }
            (fact("Run", html! { code { (run_id) } }))
        }
    }
}

/// What the run waits for.
fn pending(namespace: &str, found: &DescribeWorkflowExecutionResponse, events: &[HistoryEvent], now: i64) -> Markup {
    let timers = open_timers(events);
    let nothing = found.pending_workflow_task.is_none()
        && found.pending_activities.is_empty()
        && found.pending_children.is_empty()
        && found.pending_nexus_operations.is_empty()
        && timers.is_empty();
    html! {
        h2 { "Now" }
        ul.pending {
            @if let Some(task) = &found.pending_workflow_task {
                @let is_started = task.state == PendingWorkflowTaskState::Started as i32;
                li {
                    span.badge.run { "Workflow task" } " "
                    @if is_started { "A worker decides what comes next, since " (ago(nanos(task.started_time.as_ref()), now)) }
                    @else { "Waits for a worker, since " (ago(nanos(task.scheduled_time.as_ref()), now)) }
                    @if task.attempt > 1 { ", " b.bad { "attempt " (task.attempt) } }
                    "."
                }
            }
            @for activity in &found.pending_activities { (pending_activity(activity, now)) }
            @for (name, fires_at) in &timers {
                li { span.badge.run { "Timer" } " " b { (name) } " fires " (ago(Some(*fires_at), now)) "." }
            }
            @for child in &found.pending_children {
                li {
                    span.badge.run { "Child" } " " b { (child.workflow_type_name) } " "
                    a href=(run_link(namespace, &child.workflow_id, &child.run_id)) { (child.workflow_id) }
                    @if child.run_id.is_empty() { " is about to start." } @else { " runs." }
                }
            }
            @for operation in &found.pending_nexus_operations { (pending_operation(operation, now)) }
            @if nothing { li { span.badge.off { "Idle" } " Waits for a signal or an update: nothing is scheduled." } }
        }
    }
}

fn pending_activity(activity: &PendingActivityInfo, now: i64) -> Markup {
    let name = activity.activity_type.as_ref().map_or("", |kind| kind.name.as_str());
    let next = nanos(activity.next_attempt_schedule_time.as_ref()).filter(|at| *at > now);
    html! {
        li {
            span.badge.(if activity.paused { "warn" } else { "run" }) { "Activity" } " " b { (name) } " "
            @match (activity.state(), next) {
                _ if activity.paused => "is paused",
                (PendingActivityState::Started, _) => {
                    "runs since " (ago(nanos(activity.last_started_time.as_ref()), now))
                    @if !activity.last_worker_identity.is_empty() { " on " (activity.last_worker_identity) }
                }
                (PendingActivityState::CancelRequested, _) => "is asked to cancel",
                (_, Some(next)) => { "is tried again " (ago(Some(next), now)) }
                _ => { "waits for a worker since " (ago(nanos(activity.scheduled_time.as_ref()), now)) }
            }
            @if activity.attempt > 1 {
                ", attempt " (activity.attempt)
                @if activity.maximum_attempts > 0 { " of " (activity.maximum_attempts) }
            }
            @if let Some(at) = nanos(activity.last_heartbeat_time.as_ref()) { ", last heartbeat " (ago(Some(at), now)) }
            "."
            (last_failure(activity.last_failure.as_ref()))
        }
    }
}

fn pending_operation(operation: &PendingNexusOperationInfo, now: i64) -> Markup {
    let state = PendingNexusOperationState::try_from(operation.state).unwrap_or_default();
    html! {
        li {
            span.badge.run { "Nexus" } " " b { (operation.service) "." (operation.operation) } " at " (operation.endpoint)
            ": " (plain(state.as_str_name(), "PENDING_NEXUS_OPERATION_STATE_"))
            @if operation.attempt > 1 { ", attempt " (operation.attempt) }
            @if let Some(at) = nanos(operation.next_attempt_schedule_time.as_ref()) { ", next attempt " (ago(Some(at), now)) }
            @if !operation.blocked_reason.is_empty() { ", " (operation.blocked_reason) }
            "."
            (last_failure(operation.last_attempt_failure.as_ref()))
        }
    }
}

fn last_failure(failure: Option<&Failure>) -> Markup {
    html! { @if let Some(failure) = failure { pre.bad { (payload::failure(failure)) } } }
}

/// Names of timers that have neither fired nor been cancelled, and when they will.
fn open_timers(events: &[HistoryEvent]) -> Vec<(String, i64)> {
    let mut open: Vec<(i64, String, i64)> = Vec::new();
    for event in events {
        match &event.attributes {
            Some(Attributes::TimerStartedEventAttributes(timer)) => {
                let length = perdure_types::Duration::from_proto(timer.start_to_fire_timeout.as_ref()).0;
                let at = nanos(event.event_time.as_ref()).unwrap_or_default();
                open.push((event.event_id, timer.timer_id.clone(), at.saturating_add(length)));
            }
            Some(Attributes::TimerFiredEventAttributes(timer)) => open.retain(|(id, ..)| *id != timer.started_event_id),
            Some(Attributes::TimerCanceledEventAttributes(timer)) => {
                open.retain(|(id, ..)| *id != timer.started_event_id);
            }
            _ => {}
        }
    }
    open.into_iter().map(|(_, name, at)| (name, at)).collect()
}

fn drawn(
    info: &WorkflowExecutionInfo,
    found: &DescribeWorkflowExecutionResponse,
    history: &Events,
    now: i64,
) -> Markup {
    let first = history.events.first().and_then(|event| nanos(event.event_time.as_ref()));
    let from = if history.are_all { nanos(info.start_time.as_ref()).or(first) } else { first };
    let last = history.events.last().filter(|event| timeline::ends(event));
    let to = nanos(info.close_time.as_ref()).or_else(|| last.and_then(|event| nanos(event.event_time.as_ref())));
    let built = timeline::build(&history.events, &found.pending_activities);
    html! {
        h2 { "Timeline" }
        @if !history.are_all {
            p.note { "Of " (number(info.history_length)) " events, the latest " (number(history.events.len() as i64)) "." }
        }
        @if built.lanes.is_empty() { p.empty { "Nothing has been scheduled." } }
        @else { (built.chart(from.unwrap_or(now), to.unwrap_or(now))) }
    }
}

fn listed(history: &Events, started: i64) -> Markup {
    html! {
        h2 { "Events" }
        ol.events {
            @for event in history.events.iter().rev() {
                @let line = events::line(event);
                @let at = nanos(event.event_time.as_ref()).unwrap_or_default();
                @let class = match line.tone { Tone::Plain => "", Tone::Good => "ok", Tone::Bad => "bad" };
                li.(class) {
                    span.number { (event.event_id) }
                    time title=(moment(at)) { "+" (span(at.saturating_sub(started))) }
                    @if line.details.is_empty() {
                        span.said { b { (line.name) } " " span.about { (line.about) } }
                    } @else {
                        details.said id=(format!("event-{}", event.event_id)) {
                            summary { b { (line.name) } " " span.about { (line.about) } }
                            dl { @for (name, text) in &line.details { dt { (name) } dd { pre { (text) } } } }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{
        common::v1::ActivityType,
        history::v1::{TimerFiredEventAttributes, TimerStartedEventAttributes},
        workflow::v1::PendingChildExecutionInfo,
    };

    use super::*;

    const EVIL: &str = "</pre><script>alert(1)</script>";

    fn timer(id: i64, seconds: i64) -> HistoryEvent {
        let timeout = prost_types::Duration { seconds, nanos: 0 };
        let started = TimerStartedEventAttributes {
            timer_id: id.to_string(),
            start_to_fire_timeout: Some(timeout),
            ..Default::default()
        };
        let time = prost_types::Timestamp { seconds: 100, nanos: 0 };
        let attributes = Some(Attributes::TimerStartedEventAttributes(started));
        HistoryEvent { event_id: id, event_time: Some(time), attributes, ..HistoryEvent::default() }
    }

    #[test]
    fn timers_that_have_not_fired_are_pending() {
        let fired = TimerFiredEventAttributes { timer_id: "5".into(), started_event_id: 5 };
        let attributes = Some(Attributes::TimerFiredEventAttributes(fired));
        let events = [timer(5, 1), timer(6, 60), HistoryEvent { event_id: 7, attributes, ..HistoryEvent::default() }];
        assert_eq!(open_timers(&events), [("6".to_owned(), 160_000_000_000)]);
    }

    #[test]
    fn what_is_pending_is_said_and_escaped() {
        let activity = PendingActivityInfo {
            activity_type: Some(ActivityType { name: EVIL.into() }),
            attempt: 4,
            maximum_attempts: 9,
            next_attempt_schedule_time: Some(prost_types::Timestamp { seconds: 90, nanos: 0 }),
            last_failure: Some(Failure { message: EVIL.into(), ..Failure::default() }),
            ..PendingActivityInfo::default()
        };
        let child = PendingChildExecutionInfo { workflow_id: EVIL.into(), ..PendingChildExecutionInfo::default() };
        let found = DescribeWorkflowExecutionResponse {
            pending_activities: vec![activity],
            pending_children: vec![child],
            ..DescribeWorkflowExecutionResponse::default()
        };
        let text = pending("default", &found, &[], 30_000_000_000).into_string();
        assert!(!text.contains("<script>"), "{text}");
        assert!(text.contains("in 1 min") && text.contains("attempt 4 of 9"), "{text}");
    }

    #[test]
    fn a_run_that_waits_for_nothing_says_so() {
        let text = pending("default", &DescribeWorkflowExecutionResponse::default(), &[], 0).into_string();
        assert!(text.contains("Waits for a signal or an update"), "{text}");
    }

    #[test]
    fn events_come_latest_first() {
        let text = listed(&Events { events: vec![timer(5, 1), timer(6, 2)], are_all: true }, 0).into_string();
        assert!(text.find(">6<") < text.find(">5<"), "{text}");
    }
}
