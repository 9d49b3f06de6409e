//! What is durable of a task queue: the deployments whose workers poll it, and what operators have set, sets and rules of
//! build ids among it. One entity for the
//! queue's name; its types are told apart inside. The queue's home follows it: it asks for what is newer than what it has.

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{WorkflowReply, task_queue_command::Command as C, workflow_call::Command, workflow_reply},
        state::v1::{TaskQueueDeployment, TaskQueueState, TaskQueueTypeState},
    },
    temporal::api::{
        taskqueue::v1::{ConfigMetadata, RateLimitConfig, TaskQueueConfig},
        workflowservice::v1::{UpdateTaskQueueConfigRequest, update_task_queue_config_request::RateLimitUpdate},
    },
};
use perdure_types::{ChainKey, Timestamp};
use perdure_workflow::{Answer, CallId, Change, Effect, Env, Outcome, Release, Reply, Single, Watch};
use prost::Message;

use crate::{rules, version_sets};

/// Weights that operators may set for fairness keys of one queue.
const MOST_WEIGHTS: usize = 1000;

/// What is durable of one task queue.
#[derive(Debug)]
pub struct TaskQueue {
    state: TaskQueueState,
}

impl TaskQueue {
    fn reply(&self) -> Box<Reply> {
        Box::new(Reply::new(workflow_reply::Reply::TaskQueue(Box::new(self.state.clone()))))
    }

    /// True if that is new.
    fn sync(&mut self, told: TaskQueueDeployment) -> bool {
        let deployments = &mut self.state.deployments;
        match deployments.iter_mut().find(|known| known.name == told.name) {
            Some(known) if known.revision >= told.revision => return false,
            Some(known) => *known = told,
            None => deployments.push(told),
        }
        true
    }

    /// What operators ask for. On error it may have been done in part.
    fn update(&mut self, command: C, env: &Env) -> Result<bool, Error> {
        match command {
            C::UpdateConfig(request) => return self.update_config(request, env).map(|()| true),
            C::UpdateVersionSets(request) => {
                let build_ids = self.state.build_ids.get_or_insert_default();
                if !version_sets::update(build_ids, request, env.now, env.limits)? {
                    return Ok(false);
                }
            }
            C::UpdateRules(update) => {
                rules::update(self.state.build_ids.get_or_insert_default(), update, env.now, env.limits)?;
            }
            C::Follow(_) | C::Sync(_) => return Ok(false),
        }
        if let Some(build_ids) = &mut self.state.build_ids {
            build_ids.revision += 1;
        }
        Ok(true)
    }

    fn update_config(&mut self, request: UpdateTaskQueueConfigRequest, env: &Env) -> Result<(), Error> {
        let types = &mut self.state.types;
        let index = types.iter().position(|known| known.r#type == request.task_queue_type).unwrap_or_else(|| {
            types.push(TaskQueueTypeState { r#type: request.task_queue_type, config: None });
            types.len() - 1
        });
        let config: &mut TaskQueueConfig = types[index].config.get_or_insert_default();
        let identity = &request.identity;
        if let Some(update) = request.update_queue_rate_limit {
            config.queue_rate_limit = Some(limit(update, identity, env));
        }
        if let Some(update) = request.update_fairness_key_rate_limit_default {
            config.fairness_keys_rate_limit_default = Some(limit(update, identity, env));
        }
        for key in &request.unset_fairness_weight_overrides {
            config.fairness_weight_overrides.remove(key);
        }
        config.fairness_weight_overrides.extend(request.set_fairness_weight_overrides);
        if config.fairness_weight_overrides.len() > MOST_WEIGHTS {
            let message = format!("fairness weight overrides update rejected: maximum of {MOST_WEIGHTS} overrides");
            return Err(Error::invalid_argument(message));
        }
        Ok(())
    }
}

fn limit(update: RateLimitUpdate, identity: &str, env: &Env) -> RateLimitConfig {
    RateLimitConfig {
        rate_limit: update.rate_limit,
        metadata: Some(ConfigMetadata {
            reason: update.reason,
            update_identity: identity.to_owned(),
            update_time: env.now.to_proto(),
        }),
    }
}

impl Single for TaskQueue {
    fn new(_key: ChainKey) -> Self {
        Self { state: TaskQueueState::default() }
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), prost::DecodeError> {
        self.apply(snapshot)
    }

    fn snapshot(&self) -> Bytes {
        self.state.encode_to_vec().into()
    }

    fn apply(&mut self, change: Bytes) -> Result<(), prost::DecodeError> {
        self.state = TaskQueueState::decode(change)?;
        Ok(())
    }

    fn handle(&mut self, command: Command, _incarnation: &str, env: &mut Env) -> Result<Change, Error> {
        let Command::TaskQueue(command) = command else {
            return Err(perdure_workflow::foreign_command());
        };
        let command = command.command.ok_or_else(|| Error::invalid_argument("the call has no command"))?;
        let changed = match command {
            C::Follow(known) if known >= self.state.revision => {
                let watch = Watch::Revision { revision: known + 1, reply: None };
                return Ok(Change { answer: Answer::Watch(watch), ..Change::default() });
            }
            C::Follow(_) => false,
            C::Sync(told) => self.sync(told),
            command @ (C::UpdateConfig(_) | C::UpdateVersionSets(_) | C::UpdateRules(_)) => {
                let before = self.state.clone();
                match self.update(command, env) {
                    Ok(changed) => changed,
                    Err(error) => {
                        self.state = before;
                        return Err(error);
                    }
                }
            }
        };
        if changed {
            self.state.revision += 1;
        }
        let record = changed.then(|| self.snapshot());
        Ok(Change { record, answer: Answer::Reply(self.reply()), release: Release::Durable, ..Change::default() })
    }

    fn on_timer(&mut self, _incarnation: &str, _env: &mut Env) -> Change {
        Change::default()
    }

    fn on_call_result(&mut self, _id: &CallId, _result: Result<WorkflowReply, Error>, _env: &mut Env) -> Change {
        Change::default()
    }

    fn next_timer(&self) -> Option<Timestamp> {
        None
    }

    fn wake_at(&self) -> Option<Timestamp> {
        None
    }

    fn resume(&self, _incarnation: &str) -> Vec<Effect> {
        Vec::new()
    }

    fn check(&mut self, watch: &Watch) -> Option<Outcome> {
        match watch {
            Watch::Revision { revision, .. } if self.state.revision >= *revision => Some(Ok(*self.reply())),
            _ => None,
        }
    }

    fn give_up(&mut self, watch: &Watch) -> Option<Outcome> {
        matches!(watch, Watch::Revision { .. }).then(|| Ok(*self.reply()))
    }

    fn weight_bytes(&self) -> usize {
        512 + 2 * self.state.encoded_len()
    }
}
