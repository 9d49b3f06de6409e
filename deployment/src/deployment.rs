//! The entity: its state, and how inputs reach it.

use std::collections::BTreeSet;

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            DeploymentCommand, DeploymentReply, Empty, WorkflowReply, deployment_command, deployment_reply,
            workflow_call::Command, workflow_reply,
        },
        state::v1::{DeploymentState, DeploymentVersionState},
    },
    temporal::api::{
        deployment::v1::{RoutingConfig, WorkerDeploymentVersion},
        workflow::v1::WorkflowExecutionInfo,
    },
    versions,
};
use perdure_types::{ChainKey, Timestamp};
use perdure_workflow::{Answer, CallId, Change, Effect, Env, Outcome, Release, Reply, Single, Watch};
use prost::Message;

use crate::{drainage, sync};

/// One worker deployment. Without a time of creation it does not exist.
#[derive(Debug)]
pub struct Deployment {
    pub(crate) key: ChainKey,
    pub(crate) state: DeploymentState,
    /// Versions whose workflows are being looked for, by time of creation. Volatile: they are looked for again.
    pub(crate) checking: BTreeSet<i64>,
    /// When drainage is to be looked at again. Follows from the state.
    pub(crate) timer: Option<Timestamp>,
    /// The state has to be logged.
    pub(crate) changed: bool,
}

/// What a handler gives back; `wait`: the answer leaves when the task queues know of the change.
pub(crate) struct Done {
    pub reply: deployment_reply::Reply,
    pub wait: bool,
}

impl Done {
    pub fn now(reply: deployment_reply::Reply) -> Self {
        Self { reply, wait: false }
    }

    pub fn when_known(reply: deployment_reply::Reply) -> Self {
        Self { reply, wait: true }
    }
}

pub(crate) fn empty() -> deployment_reply::Reply {
    deployment_reply::Reply::Done(Empty {})
}

impl Deployment {
    pub(crate) fn name(&self) -> &str {
        &self.key.workflow_id
    }

    pub(crate) fn exists(&self) -> bool {
        self.state.create_time_ns != 0
    }

    pub(crate) fn routing(&self) -> &RoutingConfig {
        static NONE: std::sync::LazyLock<RoutingConfig> = std::sync::LazyLock::new(RoutingConfig::default);
        self.state.routing_config.as_ref().unwrap_or(&NONE)
    }

    pub(crate) fn version(&self, build_id: &str) -> Option<&DeploymentVersionState> {
        self.state.versions.iter().find(|version| version.build_id == build_id)
    }

    pub(crate) fn version_mut(&mut self, build_id: &str) -> Option<&mut DeploymentVersionState> {
        self.changed = true;
        self.state.versions.iter_mut().find(|version| version.build_id == build_id)
    }

    pub(crate) fn named(&self, build_id: &str) -> WorkerDeploymentVersion {
        versions::version(self.name(), build_id)
    }

    /// A version of this deployment from what a client sent: as a message, else as text. `None`: unversioned.
    pub(crate) fn read_version(&self, text: &str) -> Result<Option<WorkerDeploymentVersion>, Error> {
        let version = versions::parse(text)
            .map_err(|reason| Error::invalid_argument(format!("invalid version string: {reason}")))?;
        match version {
            Some(version) if version.deployment_name != self.name() => Err(Error::invalid_argument(format!(
                "invalid version string '{text}' does not match deployment name '{}'",
                self.name()
            ))),
            version => Ok(version),
        }
    }

    pub(crate) fn not_found(&self) -> Error {
        Error::not_found(format!(
            "no Worker Deployment found with name '{}'; does your Worker Deployment have pollers?",
            self.name()
        ))
    }

    /// A client changes something: what it holds of the state from before is out of date.
    pub(crate) fn touch(&mut self, identity: &str, env: &Env) {
        self.state.token = env.now.as_nanos().max(self.state.token + 1);
        self.state.last_modifier_identity = identity.to_owned();
        self.changed = true;
    }

    pub(crate) fn token(&self) -> Bytes {
        self.state.token.to_be_bytes().to_vec().into()
    }

    pub(crate) fn check_token(&self, token: &[u8]) -> Result<(), Error> {
        if token.is_empty() || token == self.token() {
            return Ok(());
        }
        Err(Error::failed_precondition("conflict token mismatch"))
    }

    pub(crate) fn check_manager(&self, identity: &str) -> Result<(), Error> {
        let manager = &self.state.manager_identity;
        if manager.is_empty() || manager == identity {
            return Ok(());
        }
        Err(Error::failed_precondition(format!(
            "ManagerIdentity '{manager}' is set and does not match user identity '{identity}'; to proceed, set your own identity as the ManagerIdentity, remove the ManagerIdentity, or wait for the other client to do so"
        )))
    }

    fn dispatch(&mut self, command: DeploymentCommand, env: &Env) -> Result<Done, Error> {
        use deployment_command::Command as C;
        let DeploymentCommand { namespace, command, misses_task_queues, has_pollers } = command;
        let command = command.ok_or_else(|| Error::invalid_argument("the call has no command"))?;
        match command {
            C::Register(c) => self.register(namespace, c, env),
            C::Create(c) => self.create(namespace, c, env),
            C::SetCurrent(c) => self.set_current(namespace, c, misses_task_queues, env),
            C::SetRamping(c) => self.set_ramping(namespace, c, misses_task_queues, env),
            C::Delete(_) if !self.exists() => Ok(Done::now(empty())),
            _ if !self.exists() => Err(self.not_found()),
            C::Describe(_) => Ok(Done::now(deployment_reply::Reply::Describe(self.describe()))),
            C::DescribeVersion(c) => self.describe_version(&c),
            C::SetManager(c) => self.set_manager(c, env),
            C::UpdateMetadata(c) => self.update_metadata(c),
            C::CreateVersion(c) => self.create_version(c, env),
            C::DeleteVersion(c) => self.delete_version(c, has_pollers, env),
            C::Delete(_) => self.check_deletable().map(|()| Done::now(empty())),
        }
    }

    fn check_deletable(&self) -> Result<(), Error> {
        if !self.state.versions.is_empty() {
            return Err(Error::failed_precondition("deployment has versions, can't be deleted"));
        }
        if !self.is_settled(self.state.revision) {
            return Err(Error::unavailable("task queues are still being told of the last change, try again"));
        }
        Ok(())
    }

    /// Ends a transition.
    pub(crate) fn commit(
        &mut self,
        answer: Answer,
        mut effects: Vec<Effect>,
        incarnation: &str,
        before: i64,
    ) -> Change {
        if self.state.revision != before {
            effects.extend(self.outstanding_syncs(incarnation));
        }
        self.retime();
        let record = std::mem::take(&mut self.changed).then(|| self.state.encode_to_vec().into());
        Change { record, deleted: false, effects, answer, release: Release::Durable }
    }
}

fn reply_of(reply: deployment_reply::Reply) -> Box<Reply> {
    let reply = DeploymentReply { reply: Some(reply) };
    Box::new(Reply::new(workflow_reply::Reply::Deployment(Box::new(reply))))
}

impl Single for Deployment {
    fn new(key: ChainKey) -> Self {
        Self { key, state: DeploymentState::default(), checking: BTreeSet::new(), timer: None, changed: false }
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), prost::DecodeError> {
        self.apply(snapshot)
    }

    fn snapshot(&self) -> Bytes {
        self.state.encode_to_vec().into()
    }

    fn apply(&mut self, change: Bytes) -> Result<(), prost::DecodeError> {
        self.state = DeploymentState::decode(change)?;
        self.retime();
        Ok(())
    }

    fn handle(&mut self, command: Command, incarnation: &str, env: &mut Env) -> Result<Change, Error> {
        let Command::Deployment(command) = command else {
            return Err(perdure_workflow::foreign_command());
        };
        let deleted = matches!(command.command, Some(deployment_command::Command::Delete(_))) && self.exists();
        let before = self.state.clone();
        let done = match self.dispatch(*command, env) {
            Ok(done) => done,
            Err(error) => {
                self.state = before;
                self.changed = false;
                return Err(error);
            }
        };
        if deleted {
            return Ok(Change { deleted, answer: Answer::Reply(reply_of(done.reply)), ..Change::default() });
        }
        let answer = if done.wait {
            let reply = Some(reply_of(done.reply));
            Answer::Watch(Watch::Revision { revision: self.state.revision, reply })
        } else {
            Answer::Reply(reply_of(done.reply))
        };
        Ok(self.commit(answer, Vec::new(), incarnation, before.revision))
    }

    fn on_timer(&mut self, incarnation: &str, env: &mut Env) -> Change {
        let effects = self.check_drainage(incarnation, env);
        let revision = self.state.revision;
        self.commit(Answer::default(), effects, incarnation, revision)
    }

    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Change {
        let before = self.state.revision;
        let mut effects = Vec::new();
        match id.kind {
            sync::SYNC => effects.extend(self.synced(id, result)),
            drainage::LIST => self.drainage_checked(id.event_id, result, env),
            _ => {}
        }
        self.commit(Answer::default(), effects, &id.run_id, before)
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.timer
    }

    fn wake_at(&self) -> Option<Timestamp> {
        if self.is_settled(self.state.revision) { self.timer } else { Some(Timestamp(self.state.create_time_ns)) }
    }

    fn resume(&self, incarnation: &str) -> Vec<Effect> {
        self.outstanding_syncs(incarnation)
    }

    fn check(&mut self, watch: &Watch) -> Option<Outcome> {
        match watch {
            Watch::Revision { revision, reply } if self.is_settled(*revision) => reply.clone().map(|reply| Ok(*reply)),
            _ => None,
        }
    }

    fn give_up(&mut self, watch: &Watch) -> Option<Outcome> {
        match watch {
            // The change is made. That some queue does not know of it yet is shown by the description.
            Watch::Revision { reply, .. } => reply.clone().map(|reply| Ok(*reply)),
            _ => None,
        }
    }

    fn listing(&self, incarnation: &str) -> Option<WorkflowExecutionInfo> {
        self.exists().then(|| self.list_row(incarnation))
    }

    fn weight_bytes(&self) -> usize {
        1024 + 2 * self.state.encoded_len()
    }
}
