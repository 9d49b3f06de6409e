//! A run's history as lanes over time: what it did, side by side, and what it waits for.
//!
//! Events come from a history that may be cut off at its beginning; a lane whose beginning is not among them begins where
//! the drawing does.

use std::collections::HashMap;

use maud::{Markup, html};
use perdure_proto::temporal::api::{
    enums::v1::{EventType, PendingActivityState},
    history::v1::{HistoryEvent, history_event::Attributes as A},
    workflow::v1::PendingActivityInfo,
};

use crate::format::{nanos, span};

const MOST_LANES: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    WorkflowTask,
    Activity,
    Timer,
    Child,
    Nexus,
    Update,
    Signal,
    Marker,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::WorkflowTask => "workflow tasks",
            Self::Activity => "activity",
            Self::Timer => "timer",
            Self::Child => "child",
            Self::Nexus => "Nexus",
            Self::Update => "update",
            Self::Signal => "signal",
            Self::Marker => "marker",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Open,
    Done,
    Failed,
    Gone,
}

impl Outcome {
    fn class(self) -> &'static str {
        match self {
            Self::Open => "run",
            Self::Done => "ok",
            Self::Failed => "bad",
            Self::Gone => "off",
        }
    }
}

/// From being asked for to being over. One without length is a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    pub from: i64,
    /// When somebody took it up.
    pub begun: Option<i64>,
    pub to: Option<i64>,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    pub kind: Kind,
    pub name: String,
    pub note: String,
    pub stretches: Vec<Stretch>,
}

#[derive(Debug, Default)]
pub struct Timeline {
    pub lanes: Vec<Lane>,
    /// Lanes that are not drawn.
    pub left_out: usize,
}

/// Lanes under way, by the event that began them.
#[derive(Default)]
struct Builder {
    lanes: Vec<Lane>,
    by_event: HashMap<i64, (usize, usize)>,
    by_name: HashMap<(&'static str, String), usize>,
}

impl Builder {
    fn begin(&mut self, event: i64, at: i64, kind: Kind, name: String, note: String) {
        self.by_event.insert(event, (self.lanes.len(), 0));
        let stretch = Stretch { from: at, begun: None, to: None, outcome: Outcome::Open };
        self.lanes.push(Lane { kind, name, note, stretches: vec![stretch] });
    }

    /// In a lane that several share.
    fn shared(&mut self, kind: Kind, name: String) -> &mut Lane {
        let place = *self.by_name.entry((kind.name(), name.clone())).or_insert_with(|| {
            self.lanes.push(Lane { kind, name, note: String::new(), stretches: Vec::new() });
            self.lanes.len() - 1
        });
        &mut self.lanes[place]
    }

    fn point(&mut self, at: i64, kind: Kind, name: String, outcome: Outcome) {
        let point = Stretch { from: at, begun: Some(at), to: Some(at), outcome };
        self.shared(kind, name).stretches.push(point);
    }

    fn workflow_task(&mut self, event: i64, at: i64) {
        let lane = self.shared(Kind::WorkflowTask, "Workflow tasks".to_owned());
        lane.stretches.push(Stretch { from: at, begun: None, to: None, outcome: Outcome::Open });
        let stretch = lane.stretches.len() - 1;
        if let Some(place) = self.by_name.get(&(Kind::WorkflowTask.name(), "Workflow tasks".to_owned())) {
            self.by_event.insert(event, (*place, stretch));
        }
    }

    fn stretch(&mut self, event: i64) -> Option<&mut Stretch> {
        let (lane, stretch) = *self.by_event.get(&event)?;
        self.lanes.get_mut(lane)?.stretches.get_mut(stretch)
    }

    fn started(&mut self, event: i64, at: i64) {
        if let Some(stretch) = self.stretch(event) {
            stretch.begun = Some(at);
        }
    }

    fn ended(&mut self, event: i64, at: i64, outcome: Outcome) {
        if let Some(stretch) = self.stretch(event) {
            stretch.to = Some(at);
            stretch.outcome = outcome;
        }
    }

    fn note(&mut self, event: i64, note: String) {
        if let Some(lane) = self.by_event.get(&event).and_then(|(lane, _)| self.lanes.get_mut(*lane)) {
            lane.note = note;
        }
    }
}

pub fn build(events: &[HistoryEvent], pending: &[PendingActivityInfo]) -> Timeline {
    let mut builder = Builder::default();
    let mut activities: HashMap<&str, i64> = HashMap::new();
    for event in events {
        if let Some(A::ActivityTaskScheduledEventAttributes(a)) = &event.attributes {
            activities.insert(&a.activity_id, event.event_id);
        }
        if let Some(at) = nanos(event.event_time.as_ref()) {
            take(&mut builder, event, at);
            take_operation(&mut builder, event, at);
        }
    }
    for activity in pending {
        let Some(event) = activities.get(activity.activity_id.as_str()) else { continue };
        // Its start is an event only when it is over.
        let is_started = activity.state() != PendingActivityState::Scheduled;
        if let Some(at) = nanos(activity.last_started_time.as_ref()).filter(|_| is_started) {
            builder.started(*event, at);
        }
        if activity.attempt > 1 {
            builder.note(*event, format!("attempt {}", activity.attempt));
        }
    }
    let left_out = builder.lanes.len().saturating_sub(MOST_LANES);
    builder.lanes.truncate(MOST_LANES);
    Timeline { lanes: builder.lanes, left_out }
}

/// Workflow tasks, activities, timers, and points in time.
fn take(builder: &mut Builder, event: &HistoryEvent, at: i64) {
    let Some(attributes) = &event.attributes else { return };
    match attributes {
        A::WorkflowTaskScheduledEventAttributes(_) => builder.workflow_task(event.event_id, at),
        A::WorkflowTaskStartedEventAttributes(a) => builder.started(a.scheduled_event_id, at),
        A::WorkflowTaskCompletedEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Done),
        A::WorkflowTaskTimedOutEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Failed),
        A::WorkflowTaskFailedEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Failed),
        A::ActivityTaskScheduledEventAttributes(a) => {
            let name = a.activity_type.as_ref().map_or_else(String::new, |kind| kind.name.clone());
            builder.begin(event.event_id, at, Kind::Activity, name, String::new());
        }
        A::ActivityTaskStartedEventAttributes(a) => {
            builder.started(a.scheduled_event_id, at);
            if a.attempt > 1 {
                builder.note(a.scheduled_event_id, format!("attempt {}", a.attempt));
            }
        }
        A::ActivityTaskCompletedEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Done),
        A::ActivityTaskFailedEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Failed),
        A::ActivityTaskTimedOutEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Failed),
        A::ActivityTaskCanceledEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Gone),
        A::TimerStartedEventAttributes(a) => {
            let length = perdure_types::Duration::from_proto(a.start_to_fire_timeout.as_ref()).0;
            builder.begin(event.event_id, at, Kind::Timer, format!("Timer {}", a.timer_id), span(length));
            builder.started(event.event_id, at);
        }
        A::TimerFiredEventAttributes(a) => builder.ended(a.started_event_id, at, Outcome::Done),
        A::TimerCanceledEventAttributes(a) => builder.ended(a.started_event_id, at, Outcome::Gone),
        A::WorkflowExecutionSignaledEventAttributes(a) => {
            builder.point(at, Kind::Signal, a.signal_name.clone(), Outcome::Done);
        }
        A::WorkflowExecutionCancelRequestedEventAttributes(_) => {
            builder.point(at, Kind::Signal, "Cancellation".to_owned(), Outcome::Gone);
        }
        A::MarkerRecordedEventAttributes(a) => {
            let outcome = if a.failure.is_some() { Outcome::Failed } else { Outcome::Done };
            builder.point(at, Kind::Marker, a.marker_name.clone(), outcome);
        }
        _ => {}
    }
}

/// Children, Nexus operations and updates.
fn take_operation(builder: &mut Builder, event: &HistoryEvent, at: i64) {
    let Some(attributes) = &event.attributes else { return };
    match attributes {
        A::StartChildWorkflowExecutionInitiatedEventAttributes(a) => {
            let name = a.workflow_type.as_ref().map_or_else(String::new, |kind| kind.name.clone());
            builder.begin(event.event_id, at, Kind::Child, name, a.workflow_id.clone());
        }
        A::StartChildWorkflowExecutionFailedEventAttributes(a) => {
            builder.ended(a.initiated_event_id, at, Outcome::Failed);
        }
        A::ChildWorkflowExecutionStartedEventAttributes(a) => builder.started(a.initiated_event_id, at),
        A::ChildWorkflowExecutionCompletedEventAttributes(a) => builder.ended(a.initiated_event_id, at, Outcome::Done),
        A::ChildWorkflowExecutionFailedEventAttributes(a) => builder.ended(a.initiated_event_id, at, Outcome::Failed),
        A::ChildWorkflowExecutionTimedOutEventAttributes(a) => builder.ended(a.initiated_event_id, at, Outcome::Failed),
        A::ChildWorkflowExecutionTerminatedEventAttributes(a) => {
            builder.ended(a.initiated_event_id, at, Outcome::Failed);
        }
        A::ChildWorkflowExecutionCanceledEventAttributes(a) => builder.ended(a.initiated_event_id, at, Outcome::Gone),
        A::NexusOperationScheduledEventAttributes(a) => {
            builder.begin(
                event.event_id,
                at,
                Kind::Nexus,
                format!("{}.{}", a.service, a.operation),
                a.endpoint.clone(),
            );
        }
        A::NexusOperationStartedEventAttributes(a) => builder.started(a.scheduled_event_id, at),
        A::NexusOperationCompletedEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Done),
        A::NexusOperationFailedEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Failed),
        A::NexusOperationTimedOutEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Failed),
        A::NexusOperationCanceledEventAttributes(a) => builder.ended(a.scheduled_event_id, at, Outcome::Gone),
        A::WorkflowExecutionUpdateAcceptedEventAttributes(a) => {
            let input = a.accepted_request.as_ref().and_then(|request| request.input.as_ref());
            let name = input.map_or_else(String::new, |input| input.name.clone());
            builder.begin(event.event_id, at, Kind::Update, name, String::new());
            builder.started(event.event_id, at);
        }
        A::WorkflowExecutionUpdateCompletedEventAttributes(a) => builder.ended(a.accepted_event_id, at, Outcome::Done),
        _ => {}
    }
}

/// Whether the event ends its run.
pub fn ends(event: &HistoryEvent) -> bool {
    use EventType as T;
    matches!(
        event.event_type(),
        T::WorkflowExecutionCompleted
            | T::WorkflowExecutionFailed
            | T::WorkflowExecutionTimedOut
            | T::WorkflowExecutionCanceled
            | T::WorkflowExecutionTerminated
            | T::WorkflowExecutionContinuedAsNew
    )
}

/// Places on a scale of time, in hundredths of its width.
struct Scale {
    from: i64,
    length: i64,
}

impl Scale {
    fn new(from: i64, to: i64) -> Self {
        Self { from, length: to.saturating_sub(from).max(1) }
    }

    fn at(&self, time: i64) -> f64 {
        let passed = time.saturating_sub(self.from).clamp(0, self.length);
        passed as f64 * 100.0 / self.length as f64
    }

    /// Some round times after the beginning.
    fn ticks(&self) -> Vec<i64> {
        const STEPS: [i64; 10] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600];
        const MINUTE: i64 = 60_000_000_000;
        let rough = (self.length / 6).max(1);
        let step = if rough < MINUTE {
            let power = 10_i64.pow(rough.ilog10());
            [1, 2, 5, 10].into_iter().map(|step| step * power).find(|step| *step >= rough).unwrap_or(rough)
        } else {
            let minutes = STEPS.into_iter().map(|step| step * MINUTE).find(|step| *step >= rough);
            minutes.unwrap_or_else(|| (rough / (1_440 * MINUTE) + 1) * 1_440 * MINUTE)
        };
        (1..).map(|count| step.saturating_mul(count)).take_while(|tick| *tick < self.length).take(10).collect()
    }
}

fn percent(place: f64) -> String {
    format!("{place:.2}%")
}

/// Thinner is not seen.
const LEAST_PERCENT: f64 = 0.4;

impl Timeline {
    /// From the beginning of what is known to `to`.
    pub fn chart(&self, from: i64, to: i64) -> Markup {
        let scale = Scale::new(from, to);
        let ticks = scale.ticks();
        html! {
            div.timeline {
                div.lane.axis aria-hidden="true" {
                    span.label {}
                    svg.track {
                        text x="0" y="12" { "0" }
                        @for tick in &ticks {
                            @let place = scale.at(scale.from.saturating_add(*tick));
                            @if place < 93.0 { text x=(percent(place)) y="12" text-anchor="middle" { (span(*tick)) } }
                        }
                    }
                }
                @for lane in &self.lanes { (self.lane(lane, &scale, &ticks, to)) }
            }
            @if self.left_out > 0 { p.note { (self.left_out) " more are not drawn." } }
        }
    }

    fn lane(&self, lane: &Lane, scale: &Scale, ticks: &[i64], to: i64) -> Markup {
        html! {
            div.lane {
                span.label {
                    span.what { (lane.name) }
                    @if lane.kind != Kind::WorkflowTask {
                        " " span.dim { (lane.kind.name()) @if !lane.note.is_empty() { ", " (lane.note) } }
                    }
                }
                svg.track {
                    @for tick in ticks {
                        @let place = percent(scale.at(scale.from.saturating_add(*tick)));
                        line.tick x1=(place) x2=(place) y1="0" y2="100%" {}
                    }
                    @for stretch in &lane.stretches { (bar(stretch, scale, to)) }
                }
            }
        }
    }
}

fn bar(stretch: &Stretch, scale: &Scale, now: i64) -> Markup {
    let end = stretch.to.unwrap_or(now);
    let begun = stretch.begun.unwrap_or(if stretch.to.is_some() { stretch.from } else { end });
    let (from, begin, to) = (scale.at(stretch.from), scale.at(begun), scale.at(end));
    let class = stretch.outcome.class();
    let lasted = span(end.saturating_sub(stretch.from));
    let title = match stretch.outcome {
        Outcome::Open => format!("for {lasted}, not over"),
        Outcome::Done => format!("done after {lasted}"),
        Outcome::Failed => format!("failed after {lasted}"),
        Outcome::Gone => format!("cancelled after {lasted}"),
    };
    if stretch.to == Some(stretch.from) {
        return html! {
            circle.point.(class) cx=(percent(from.clamp(0.6, 99.4))) cy="50%" r="4.5" { title { (span(stretch.from.saturating_sub(scale.from))) } }
        };
    }
    let width = (to - begin).max(if stretch.begun.is_some() || stretch.to.is_some() { LEAST_PERCENT } else { 0.0 });
    html! {
        g {
            title { (title) }
            rect.wait.(class) x=(percent(from)) y="35%" height="30%" width=(percent((begin - from).max(LEAST_PERCENT))) {}
            rect.bar.(class) x=(percent(begin.min(100.0 - width))) y="18%" height="64%" rx="2" width=(percent(width)) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{common::v1::ActivityType, history::v1 as history};

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn event(id: i64, at: i64, attributes: A) -> HistoryEvent {
        let time = prost_types::Timestamp { seconds: at, nanos: 0 };
        HistoryEvent { event_id: id, event_time: Some(time), attributes: Some(attributes), ..HistoryEvent::default() }
    }

    fn scheduled(id: i64, at: i64, name: &str) -> HistoryEvent {
        let attributes = history::ActivityTaskScheduledEventAttributes {
            activity_id: id.to_string(),
            activity_type: Some(ActivityType { name: name.into() }),
            ..Default::default()
        };
        event(id, at, A::ActivityTaskScheduledEventAttributes(attributes))
    }

    fn completed(id: i64, at: i64, scheduled_event_id: i64) -> HistoryEvent {
        let attributes = history::ActivityTaskCompletedEventAttributes { scheduled_event_id, ..Default::default() };
        event(id, at, A::ActivityTaskCompletedEventAttributes(attributes))
    }

    fn started(id: i64, at: i64, scheduled_event_id: i64, attempt: i32) -> HistoryEvent {
        let attributes =
            history::ActivityTaskStartedEventAttributes { scheduled_event_id, attempt, ..Default::default() };
        event(id, at, A::ActivityTaskStartedEventAttributes(attributes))
    }

    #[test]
    fn an_activity_waits_runs_and_ends() {
        let events = [scheduled(5, 10, "charge"), started(6, 12, 5, 2), completed(7, 15, 5), scheduled(8, 16, "ship")];
        let lanes = build(&events, &[]).lanes;
        let expected =
            Stretch { from: 10 * SECOND, begun: Some(12 * SECOND), to: Some(15 * SECOND), outcome: Outcome::Done };
        assert_eq!((lanes[0].stretches.as_slice(), lanes[0].note.as_str()), ([expected].as_slice(), "attempt 2"));
        assert_eq!((lanes[1].name.as_str(), lanes[1].stretches[0].outcome), ("ship", Outcome::Open));
    }

    #[test]
    fn an_attempt_under_way_is_known_from_what_is_pending() {
        let pending = PendingActivityInfo {
            activity_id: "5".into(),
            state: PendingActivityState::Started as i32,
            attempt: 3,
            last_started_time: Some(prost_types::Timestamp { seconds: 14, nanos: 0 }),
            ..PendingActivityInfo::default()
        };
        let lanes = build(&[scheduled(5, 10, "charge")], &[pending]).lanes;
        assert_eq!((lanes[0].stretches[0].begun, lanes[0].note.as_str()), (Some(14 * SECOND), "attempt 3"));
    }

    #[test]
    fn signals_of_one_name_share_a_lane() {
        let signal = |id, at, name: &str| {
            let attributes =
                history::WorkflowExecutionSignaledEventAttributes { signal_name: name.into(), ..Default::default() };
            event(id, at, A::WorkflowExecutionSignaledEventAttributes(attributes))
        };
        let lanes = build(&[signal(1, 1, "a"), signal(2, 2, "b"), signal(3, 3, "a")], &[]).lanes;
        assert_eq!(lanes.iter().map(|lane| lane.stretches.len()).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn what_ends_without_a_beginning_is_no_panic() {
        assert!(build(&[completed(7, 15, 5), started(8, 16, 900, 1)], &[]).lanes.is_empty());
    }

    #[test]
    fn a_chart_of_any_length_has_few_ticks() {
        for length in [0, 1, 999, SECOND, 90 * SECOND, 86_400 * SECOND, 40_000_000 * SECOND, i64::MAX] {
            let scale = Scale::new(0, length);
            assert!(scale.ticks().len() <= 10, "{length}");
            assert!(scale.ticks().iter().all(|tick| *tick < length.max(1)), "{length}");
        }
        let scale = Scale::new(100, 100 + 10 * SECOND);
        assert_eq!(scale.ticks(), [2, 4, 6, 8].map(|seconds| seconds * SECOND));
    }

    #[test]
    fn names_are_escaped_and_places_are_within_the_chart() {
        let events = [scheduled(5, 10, "<script>"), started(6, 12, 5, 1), completed(7, 900, 5)];
        let text = build(&events, &[]).chart(11 * SECOND, 20 * SECOND).into_string();
        assert!(text.contains("&lt;script&gt;") && !text.contains("<script>"), "{text}");
        assert!(!text.contains("-0") && !text.contains("x=\"-"), "{text}");
    }
}
