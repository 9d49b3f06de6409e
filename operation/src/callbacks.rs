//! Who is told how a run ended.

use perdure_proto::{
    links,
    perdure::nexus::v1::{NexusCompletion, nexus_completion::Outcome},
    temporal::api::nexusoperation::v1::{
        CallbackInfo as Described,
        callback_info::{OperationCompleted, Trigger, trigger::Variant},
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
        let failed = self.state.failure.clone().map(|failure| Outcome::Failure(Box::new(failure)));
        NexusCompletion {
            start_time_ns: self.state.start_time_ns,
            close_time_ns: self.state.close_time_ns,
            links: links::to_nexus(&self.link()).into_iter().collect(),
            outcome: failed.or_else(|| self.state.result.clone().map(Outcome::Result)),
            ..NexusCompletion::default()
        }
    }

    pub(crate) fn described_callbacks(&self) -> Vec<Described> {
        let trigger = Trigger { variant: Some(Variant::OperationCompleted(OperationCompleted {})) };
        let described = Callbacks::described(&self.state.callbacks);
        described.map(|info| Described { trigger: Some(trigger), info: Some(info) }).collect()
    }
}
