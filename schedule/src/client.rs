//! What clients ask of a schedule. Requests are checked before anything changes (WF-3).

use perdure_proto::{
    Error,
    perdure::{node::v1::schedule_reply, state::v1::ScheduleDefinition},
    temporal::api::{
        schedule::v1::{Schedule as ScheduleMessage, SchedulePatch, ScheduleState as StateMessage},
        workflowservice::v1::{
            CreateScheduleRequest, CreateScheduleResponse, ListScheduleMatchingTimesRequest,
            ListScheduleMatchingTimesResponse, PatchScheduleRequest, PatchScheduleResponse, UpdateScheduleRequest,
            UpdateScheduleResponse,
        },
    },
};
use perdure_types::Timestamp;
use perdure_workflow::Env;

use crate::{
    schedule::{Answered, Schedule},
    spec::{Next, Spec},
};

/// Times in one answer.
const MAX_MATCHING_TIMES: usize = 1000;
/// Requests whose repetition is recognized.
const REMEMBERED_REQUESTS: usize = 16;

impl Schedule {
    pub(crate) fn create(&mut self, request: CreateScheduleRequest, incarnation: &str, env: &mut Env) -> Answered {
        if self.exists() {
            let repeated =
                !request.request_id.is_empty() && self.state.request_ids.first() == Some(&request.request_id);
            if repeated {
                return Ok((self.created(), Vec::new()));
            }
            let message = "schedule with this ID is already registered";
            let first = self.state.request_ids.first().cloned().unwrap_or_default();
            return Err(Error::workflow_already_started(message, &first, incarnation, incarnation));
        }
        let (schedule, state) = canonical(request.schedule.unwrap_or_default(), &self.key)?;
        self.state.create_time_ns = env.now.0;
        self.state.processed_until_ns = env.now.0;
        self.state.revision = 1;
        self.state.request_ids.push(request.request_id);
        self.set_state(&state);
        self.define(ScheduleDefinition {
            schedule: Some(schedule),
            memo: request.memo,
            search_attributes: request.search_attributes,
            namespace: request.namespace,
        });
        if let Some(patch) = &request.initial_patch {
            self.apply_patch(patch, env.now);
        }
        let effects = self.advance(incarnation, env);
        Ok((self.created(), effects))
    }

    fn created(&self) -> schedule_reply::Reply {
        schedule_reply::Reply::Create(CreateScheduleResponse { conflict_token: self.conflict_token() })
    }

    pub(crate) fn conflict_token(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.state.revision.to_be_bytes())
    }

    fn set_state(&mut self, state: &StateMessage) {
        self.state.paused = state.paused;
        self.state.notes.clone_from(&state.notes);
        self.state.remaining_actions = state.remaining_actions.max(0);
        self.changed.any = true;
    }

    pub(crate) fn update(&mut self, request: UpdateScheduleRequest, incarnation: &str, env: &mut Env) -> Answered {
        let answer = schedule_reply::Reply::Update(UpdateScheduleResponse {});
        if self.is_repeated(&request.request_id) {
            return Ok((answer, Vec::new()));
        }
        if !request.conflict_token.is_empty() && request.conflict_token != self.conflict_token() {
            return Err(Error::failed_precondition("mismatched conflict token"));
        }
        let (schedule, state) = canonical(request.schedule.unwrap_or_default(), &self.key)?;
        // What came due before belongs to what held before.
        let mut effects = self.advance(incarnation, env);
        let before = self.state.definition.take().unwrap_or_default();
        self.set_state(&state);
        self.define(ScheduleDefinition {
            schedule: Some(schedule),
            memo: request.memo.or(before.memo),
            search_attributes: request.search_attributes.or(before.search_attributes),
            namespace: before.namespace,
        });
        self.state.update_time_ns = env.now.0;
        self.state.revision += 1;
        self.remember(request.request_id);
        effects.extend(self.advance(incarnation, env));
        Ok((answer, effects))
    }

    pub(crate) fn patch(&mut self, request: PatchScheduleRequest, incarnation: &str, env: &mut Env) -> Answered {
        let answer = schedule_reply::Reply::Patch(PatchScheduleResponse {});
        if self.is_repeated(&request.request_id) {
            return Ok((answer, Vec::new()));
        }
        // Time that was spent paused, or not, is accounted for first.
        let mut effects = self.advance(incarnation, env);
        self.apply_patch(&request.patch.unwrap_or_default(), env.now);
        self.remember(request.request_id);
        effects.extend(self.advance(incarnation, env));
        Ok((answer, effects))
    }

    fn apply_patch(&mut self, patch: &SchedulePatch, now: Timestamp) {
        if let Some(trigger) = &patch.trigger_immediately {
            let time = trigger.scheduled_time.as_ref().map_or(now, |time| Timestamp::from_proto(Some(time)));
            self.add_start(time, time, trigger.overlap_policy(), true);
        }
        for backfill in &patch.backfill_request {
            let start = Timestamp::from_proto(backfill.start_time.as_ref());
            let end = Timestamp::from_proto(backfill.end_time.as_ref());
            self.add_backfill(start, end, backfill.overlap_policy());
        }
        for (notes, paused) in [(&patch.pause, true), (&patch.unpause, false)] {
            if !notes.is_empty() {
                self.state.paused = paused;
                self.state.notes.clone_from(notes);
                self.state.revision += 1;
                self.changed.any = true;
            }
        }
    }

    fn is_repeated(&self, request_id: &str) -> bool {
        !request_id.is_empty() && self.state.request_ids.iter().skip(1).any(|known| known == request_id)
    }

    /// The first stays: it is the creation's.
    fn remember(&mut self, request_id: String) {
        if request_id.is_empty() {
            return;
        }
        if self.state.request_ids.len() > REMEMBERED_REQUESTS {
            self.state.request_ids.remove(1);
        }
        self.state.request_ids.push(request_id);
        self.changed.any = true;
    }

    pub(crate) fn matching_times(
        &self,
        request: &ListScheduleMatchingTimesRequest,
    ) -> Result<schedule_reply::Reply, Error> {
        let (Some(start), Some(end)) = (&request.start_time, &request.end_time) else {
            return Err(Error::invalid_argument("missing or invalid query"));
        };
        let (mut time, end) = (Timestamp::from_proto(Some(start)), Timestamp::from_proto(Some(end)));
        let mut times = Vec::new();
        for _ in 0..MAX_MATCHING_TIMES {
            match self.next_after(time) {
                Next::At(found) if found.actual <= end => {
                    times.extend(found.actual.to_proto());
                    time = found.actual;
                }
                Next::NotBefore(later) if later <= end => time = later,
                Next::At(_) | Next::NotBefore(_) | Next::Never => break,
            }
        }
        let response = ListScheduleMatchingTimesResponse { start_time: times };
        Ok(schedule_reply::Reply::MatchingTimes(response))
    }
}

/// As it is kept: strings compiled, and what changes by itself taken out.
fn canonical(
    mut schedule: ScheduleMessage,
    key: &perdure_types::ChainKey,
) -> Result<(ScheduleMessage, StateMessage), Error> {
    let spec = schedule.spec.take().unwrap_or_default();
    let compiled = Spec::compile(&spec, &key.workflow_id);
    let compiled = compiled.map_err(|reason| Error::invalid_argument(format!("Invalid schedule spec: {reason}")))?;
    schedule.spec = Some(compiled.canonical().clone());
    let state = schedule.state.clone().unwrap_or_default();
    Ok((schedule, state))
}
