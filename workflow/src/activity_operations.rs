//! What an operator does to pending activities: pause, unpause, reset, change options. The options are in
//! `activity_options`.
//!
//! An attempt that a worker has goes on whatever is done here: the worker hears of it with its next heartbeat.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            ActivityOperation,
            activity_operation::{Activity as Selector, Operation, Pause, Reset, Unpause},
            workflow_reply,
        },
        state::v1::PauseInfo,
    },
    temporal::api::activity::v1::ActivityOptions,
};
use perdure_types::{Duration, Timestamp};

use crate::{
    activity::activity_not_found,
    api::Env,
    chain::{Answered, Chain, reply},
    run::Run,
};

impl Chain {
    pub(crate) fn activity_operation(&mut self, command: ActivityOperation, env: &mut Env) -> Answered {
        let run = self.open_run(&command.run_id)?;
        let selector = command.activity.ok_or_else(|| Error::invalid_argument("Activity is not set on request."))?;
        let operation = command.operation.ok_or_else(|| Error::invalid_argument("Operation is not set on request."))?;
        let ids = run.select_activities(&selector)?;
        let mut options = ActivityOptions::default();
        for id in ids {
            match &operation {
                Operation::Pause(pause) => run.pause_activity(env, id, pause, &command.identity)?,
                Operation::Unpause(unpause) => run.unpause_activity(env, id, unpause),
                Operation::Reset(reset) => run.reset_activity(env, id, reset),
                Operation::UpdateOptions(update) => options = run.update_activity_options(env, id, update)?,
            }
        }
        run.show_what_is_paused();
        reply(workflow_reply::Reply::ActivityOptions(Box::new(options)))
    }
}

impl Run {
    fn select_activities(&self, selector: &Selector) -> Result<Vec<i64>, Error> {
        let type_of = |activity: &crate::activity::Activity| {
            activity.scheduled().activity_type.as_ref().map(|t| t.name.clone()).unwrap_or_default()
        };
        let ids: Vec<i64> = self
            .activities
            .iter()
            .filter(|(_, activity)| match selector {
                Selector::Id(id) => activity.info.activity_id == *id,
                Selector::Type(name) => type_of(activity) == *name,
                Selector::All(_) => true,
            })
            .map(|(id, _)| *id)
            .collect();
        if ids.is_empty() {
            return Err(Error::not_found(
                "Can't find pending activity with such ID. Invalid activityID or activity already completed",
            ));
        }
        Ok(ids)
    }

    pub(crate) fn pause_activity(&mut self, env: &Env, id: i64, pause: &Pause, identity: &str) -> Result<(), Error> {
        let Some(activity) = self.activities.get(&id) else {
            return Err(activity_not_found());
        };
        if activity.info.paused {
            let before = activity.info.pause.as_ref().map_or("", |pause| pause.request_id.as_str());
            if before == pause.request_id {
                return Ok(());
            }
            return Err(Error::failed_precondition("activity is already paused"));
        }
        if let Some(activity) = self.activities.get_mut(&id) {
            let waits = !activity.is_started();
            let info = &mut activity.info;
            if waits {
                info.stamp += 1;
            }
            info.paused = true;
            info.pause = Some(Box::new(PauseInfo {
                time_ns: env.now.as_nanos(),
                identity: identity.to_owned(),
                reason: pause.reason.clone(),
                request_id: pause.request_id.clone(),
                ..PauseInfo::default()
            }));
        }
        Ok(())
    }

    fn unpause_activity(&mut self, env: &mut Env, id: i64, unpause: &Unpause) {
        let Some(activity) = self.activities.get_mut(&id).filter(|activity| activity.info.paused) else {
            return;
        };
        let started = activity.is_started();
        let info = &mut activity.info;
        info.paused = false;
        info.pause = None;
        // A running attempt keeps its number: its worker answers with it.
        if unpause.reset_attempts {
            info.attempt = 1;
            info.reset = started;
        }
        if unpause.reset_heartbeat {
            info.heartbeat_details = None;
            info.last_heartbeat_time_ns = 0;
        }
        if !started {
            let at = env.now + jitter(env, unpause.jitter_ns);
            self.schedule_activity_again(env, id, at);
        }
    }

    fn reset_activity(&mut self, env: &mut Env, id: i64, reset: &Reset) {
        if reset.restore_original_options {
            self.restore_activity_options(id);
        }
        let Some(activity) = self.activities.get_mut(&id) else {
            return;
        };
        let started = activity.is_started();
        let info = &mut activity.info;
        info.attempt = 1;
        if !reset.keep_paused {
            info.paused = false;
            info.pause = None;
        }
        if started {
            info.reset = true;
            info.reset_heartbeats |= reset.reset_heartbeat;
            return;
        }
        if reset.reset_heartbeat {
            info.heartbeat_details = None;
            info.last_heartbeat_time_ns = 0;
        }
        if info.paused {
            return;
        }
        let at = env.now + jitter(env, reset.jitter_ns);
        self.schedule_activity_again(env, id, at);
    }

    /// Offers the waiting activity anew, at another time. Offers that were made before are stale.
    pub(crate) fn schedule_activity_again(&mut self, env: &Env, id: i64, at: Timestamp) {
        if let Some(activity) = self.activities.get_mut(&id) {
            activity.info.stamp += 1;
            activity.info.scheduled_time_ns = at.as_nanos();
        }
        self.offer_activity_when_due(id, env.now);
    }
}

/// Somewhere in the given span.
fn jitter(env: &mut Env, span_ns: i64) -> Duration {
    Duration(env.ids.below(span_ns))
}
