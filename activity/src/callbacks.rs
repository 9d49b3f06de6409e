//! Who is told how a run ended.

use perdure_proto::{
    links,
    perdure::nexus::v1::{NexusCompletion, nexus_completion::Outcome},
    temporal::api::{
        activity::v1::{
            CallbackInfo as Described,
            activity_execution_outcome::Value,
            callback_info::{ActivityClosed, Trigger, trigger::Variant},
        },
        common::v1::{Link, link},
    },
};
use perdure_types::Timestamp;
use perdure_workflow::{Callbacks, Effect, Env};

use crate::run::Run;

impl Run {
    pub(crate) fn call_back(&mut self, env: &Env) {
        let completion = self.completion();
        let callbacks = Callbacks { key: &self.key, run_id: &self.run_id, completion: &completion };
        self.effects.extend(callbacks.release(&mut self.state.callbacks, env));
    }

    pub(crate) fn call_back_when_due(&mut self, now: Timestamp) {
        let completion = self.completion();
        let callbacks = Callbacks { key: &self.key, run_id: &self.run_id, completion: &completion };
        self.effects.extend(callbacks.when_due(&mut self.state.callbacks, now));
    }

    pub(crate) fn callback_calls(&self) -> Vec<Effect> {
        if !Callbacks::are_under_way(&self.state.callbacks) {
            return Vec::new();
        }
        let completion = self.completion();
        Callbacks { key: &self.key, run_id: &self.run_id, completion: &completion }.calls(&self.state.callbacks)
    }

    fn completion(&self) -> NexusCompletion {
        let outcome = match self.state.outcome.as_ref().and_then(|outcome| outcome.value.clone()) {
            Some(Value::Result(result)) => result.payloads.into_iter().next().map(Outcome::Result),
            Some(Value::Failure(failure)) => Some(Outcome::Failure(Box::new(failure))),
            None => None,
        };
        NexusCompletion {
            start_time_ns: self.state.start_time_ns,
            close_time_ns: self.state.close_time_ns,
            links: links::to_nexus(&self.link()).into_iter().collect(),
            outcome,
            ..NexusCompletion::default()
        }
    }

    pub(crate) fn link(&self) -> Link {
        let to = link::Activity {
            namespace: self.request().namespace.clone(),
            activity_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
        };
        Link { variant: Some(link::Variant::Activity(to)) }
    }

    pub(crate) fn described_callbacks(&self) -> Vec<Described> {
        let trigger = Trigger { variant: Some(Variant::ActivityClosed(ActivityClosed {})) };
        let described = Callbacks::described(&self.state.callbacks);
        described.map(|info| Described { trigger: Some(trigger), info: Some(info) }).collect()
    }
}
