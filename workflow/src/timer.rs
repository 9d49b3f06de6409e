//! User timers.

use perdure_proto::{
    perdure::state::v1::TimerInfo,
    temporal::api::{
        command::v1::{CancelTimerCommandAttributes, StartTimerCommandAttributes},
        enums::v1::WorkflowTaskFailedCause as Cause,
        history::v1::{
            TimerCanceledEventAttributes, TimerFiredEventAttributes, TimerStartedEventAttributes,
            history_event::Attributes,
        },
    },
};
use perdure_types::{Duration, Limits, Timestamp};
use prost::Message;

use crate::{
    activity_retry::check_duration,
    api::Env,
    command::{BadCommand, CommandContext, CommandResult},
    run::Run,
};

impl Run {
    pub(crate) fn start_timer_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        mut timer: StartTimerCommandAttributes,
    ) -> CommandResult {
        let bad = |message: String| BadCommand::new(Cause::BadStartTimerAttributes, message);
        check_timer_id(&timer.timer_id, "StartTimerCommand", env.limits).map_err(bad)?;
        check_duration(&mut timer.start_to_fire_timeout).map_err(|e| {
            let id = &timer.timer_id;
            bad(format!("An invalid StartToFireTimeout is set on StartTimerCommand: {e}. TimerId={id}"))
        })?;
        let timeout = Duration::from_proto(timer.start_to_fire_timeout.as_ref());
        if self.timers.contains_key(&timer.timer_id) {
            return Err(BadCommand::new(
                Cause::StartTimerDuplicateId,
                format!(
                    "invalid history builder state for action: add-timer-started-event, TimerID: {}",
                    timer.timer_id
                ),
            ));
        }
        let started_event_id = self.add_prepared(
            env.now,
            ctx.event(Attributes::TimerStartedEventAttributes(TimerStartedEventAttributes {
                timer_id: timer.timer_id.clone(),
                start_to_fire_timeout: timer.start_to_fire_timeout,
                workflow_task_completed_event_id: ctx.completed_event_id,
            })),
        );
        let started = Timestamp(self.info.last_event_time_ns);
        let fire_time_ns = (started + timeout).as_nanos();
        self.timers
            .insert(timer.timer_id.clone(), TimerInfo { timer_id: timer.timer_id, started_event_id, fire_time_ns });
        Ok(())
    }

    pub(crate) fn cancel_timer_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        timer: CancelTimerCommandAttributes,
    ) -> CommandResult {
        let bad = |message: String| BadCommand::new(Cause::BadCancelTimerAttributes, message);
        check_timer_id(&timer.timer_id, "CancelTimerCommand", env.limits).map_err(bad)?;
        let started_event_id = match self.timers.remove(&timer.timer_id) {
            Some(pending) => pending.started_event_id,
            None => self.take_buffered_fire(&timer.timer_id).ok_or_else(|| {
                let action = "invalid history builder state for action: add-timer-canceled-event";
                bad(format!("{action}, TimerID: {}", timer.timer_id))
            })?,
        };
        self.add_prepared(
            env.now,
            ctx.event(Attributes::TimerCanceledEventAttributes(TimerCanceledEventAttributes {
                timer_id: timer.timer_id,
                started_event_id,
                workflow_task_completed_event_id: ctx.completed_event_id,
                identity: ctx.identity.clone(),
            })),
        );
        Ok(())
    }

    /// A timer that fired while the workflow task ran, and that the task cancels: it has never fired.
    fn take_buffered_fire(&mut self, timer_id: &str) -> Option<i64> {
        let index = self.buffered.iter().position(|event| fired_timer(&event.attributes) == Some(timer_id))?;
        let event = self.buffered.edit().remove(index);
        self.info.edit().history_size_bytes -= event.encoded_len() as i64;
        match &event.attributes {
            Some(Attributes::TimerFiredEventAttributes(fired)) => Some(fired.started_event_id),
            _ => None,
        }
    }

    pub(crate) fn fire_timer(&mut self, env: &Env, timer_id: &str) {
        let Some(timer) = self.timers.remove(&timer_id.to_owned()) else {
            return;
        };
        let fired = TimerFiredEventAttributes { timer_id: timer.timer_id, started_event_id: timer.started_event_id };
        self.add_external(env.now, Attributes::TimerFiredEventAttributes(fired));
        self.ensure_workflow_task(env);
    }
}

fn fired_timer(attributes: &Option<Attributes>) -> Option<&str> {
    match attributes {
        Some(Attributes::TimerFiredEventAttributes(fired)) => Some(&fired.timer_id),
        _ => None,
    }
}

fn check_timer_id(id: &str, command: &str, limits: &Limits) -> Result<(), String> {
    if id.is_empty() {
        return Err(format!("TimerId is not set on {command}."));
    }
    let (length, limit) = (id.len(), limits.max_id_length);
    if length as i64 > limit {
        return Err(format!("TimerId on {command} exceeds length limit. TimerId={id} Length={length} Limit={limit}"));
    }
    Ok(())
}
