//! Which version gets the traffic: the current one, and the ramping one for a share of it.

#![allow(deprecated, reason = "older clients look at what newer ones replaced")]

use perdure_proto::{
    Error,
    perdure::node::v1::deployment_reply::Reply,
    temporal::api::{
        deployment::v1::{RoutingConfig, WorkerDeploymentVersion},
        workflowservice::v1::{
            SetWorkerDeploymentCurrentVersionRequest, SetWorkerDeploymentCurrentVersionResponse,
            SetWorkerDeploymentManagerRequest, SetWorkerDeploymentManagerResponse,
            SetWorkerDeploymentRampingVersionRequest, SetWorkerDeploymentRampingVersionResponse,
            set_worker_deployment_manager_request::NewManagerIdentity,
        },
    },
    versions,
};
use perdure_workflow::Env;

use crate::{
    deployment::{Deployment, Done},
    version::{Role, take_role},
};

type Version = Option<WorkerDeploymentVersion>;

impl Deployment {
    pub(crate) fn set_current(
        &mut self,
        namespace: String,
        request: SetWorkerDeploymentCurrentVersionRequest,
        misses_task_queues: bool,
        env: &Env,
    ) -> Result<Done, Error> {
        let wanted = match (request.version.as_str(), request.build_id.as_str()) {
            ("", "") => None,
            ("", build_id) => Some(self.named(build_id)),
            (text, _) => self.read_version(text)?,
        };
        self.begin_or_refuse(namespace, request.allow_no_pollers, env)?;
        let before = self.routing().current_deployment_version.clone();
        let answer = |deployment: &Self| {
            Reply::SetCurrent(SetWorkerDeploymentCurrentVersionResponse {
                conflict_token: deployment.token(),
                previous_version: versions::legacy_text(before.as_ref()),
                previous_deployment_version: before.clone(),
            })
        };
        if before == wanted && self.state.last_modifier_identity == request.identity {
            return Ok(Done::when_known(answer(self)));
        }
        self.check_token(&request.conflict_token)?;
        self.check_version(wanted.as_ref(), request.allow_no_pollers)?;
        self.check_manager(&request.identity)?;
        let ignore = request.ignore_missing_task_queues || before.is_none();
        if let Some(version) = wanted.as_ref().filter(|_| misses_task_queues && !ignore) {
            return Err(misses_queues(version, "current"));
        }
        self.add_missing(wanted.as_ref(), env)?;
        if before != wanted {
            let now = env.now.to_proto();
            let mut routing = self.routing().clone();
            routing.current_version = versions::legacy_text(wanted.as_ref());
            routing.current_deployment_version = wanted;
            routing.current_version_changed_time = now;
            routing.revision_number += 1;
            if routing.current_version == routing.ramping_version {
                end_ramp(&mut routing);
                routing.ramping_version_changed_time = now;
                routing.ramping_version_percentage_changed_time = now;
            }
            self.route(routing, false, env);
        }
        self.touch(&request.identity, env);
        Ok(Done::when_known(answer(self)))
    }

    pub(crate) fn set_ramping(
        &mut self,
        namespace: String,
        request: SetWorkerDeploymentRampingVersionRequest,
        misses_task_queues: bool,
        env: &Env,
    ) -> Result<Done, Error> {
        let percentage = request.percentage;
        // `None`: no ramp. `Some(None)`: to unversioned workers.
        let wanted: Option<Version> = match (request.version.as_str(), request.build_id.as_str()) {
            ("" | versions::UNVERSIONED, "") if percentage == 0.0 => None,
            ("", "") => Some(None),
            ("", build_id) => Some(Some(self.named(build_id))),
            (text, _) => Some(self.read_version(text)?),
        };
        self.begin_or_refuse(namespace, request.allow_no_pollers, env)?;
        let routing = self.routing();
        let (before, before_text) = (routing.ramping_deployment_version.clone(), routing.ramping_version.clone());
        let before_percentage = routing.ramping_version_percentage;
        let text = wanted.as_ref().map(|version| versions::legacy_text(version.as_ref())).unwrap_or_default();
        let answer = |deployment: &Self| {
            Reply::SetRamping(SetWorkerDeploymentRampingVersionResponse {
                conflict_token: deployment.token(),
                previous_version: before_text.clone(),
                previous_percentage: before_percentage,
                previous_deployment_version: before.clone(),
            })
        };
        let same = text == before_text && percentage == before_percentage;
        if same && self.state.last_modifier_identity == request.identity {
            return Ok(Done::when_known(answer(self)));
        }
        self.check_token(&request.conflict_token)?;
        if text == routing.current_version && !text.is_empty() {
            return Err(Error::failed_precondition(format!("requested ramping version {text} is already current")));
        }
        let version = wanted.clone().flatten();
        self.check_version(version.as_ref(), request.allow_no_pollers)?;
        self.check_manager(&request.identity)?;
        let has_current = self.routing().current_deployment_version.is_some();
        let checks = misses_task_queues && !request.ignore_missing_task_queues && has_current && text != before_text;
        if let Some(version) = version.as_ref().filter(|_| checks) {
            return Err(misses_queues(version, "ramping"));
        }
        self.add_missing(version.as_ref(), env)?;
        if !same {
            let now = env.now.to_proto();
            let mut routing = self.routing().clone();
            if text != before_text {
                routing.ramping_version_changed_time = now;
            }
            routing.ramping_version = text;
            routing.ramping_deployment_version = version;
            routing.ramping_version_percentage = percentage;
            routing.ramping_version_percentage_changed_time = now;
            routing.revision_number += 1;
            self.route(routing, true, env);
        }
        self.touch(&request.identity, env);
        Ok(Done::when_known(answer(self)))
    }

    pub(crate) fn set_manager(&mut self, request: SetWorkerDeploymentManagerRequest, env: &Env) -> Result<Done, Error> {
        let manager = match request.new_manager_identity {
            Some(NewManagerIdentity::Self_(true)) => request.identity.clone(),
            Some(NewManagerIdentity::ManagerIdentity(identity)) => identity,
            Some(NewManagerIdentity::Self_(false)) | None => String::new(),
        };
        let previous = self.state.manager_identity.clone();
        if previous != manager || self.state.last_modifier_identity != request.identity {
            self.check_token(&request.conflict_token)?;
            self.state.manager_identity = manager;
            self.touch(&request.identity, env);
        }
        Ok(Done::now(Reply::SetManager(SetWorkerDeploymentManagerResponse {
            conflict_token: self.token(),
            previous_manager_identity: previous,
        })))
    }

    fn begin_or_refuse(&mut self, namespace: String, may_begin: bool, env: &Env) -> Result<(), Error> {
        if !self.exists() && !may_begin {
            return Err(self.not_found());
        }
        self.begin(namespace, String::new(), "", env);
        Ok(())
    }

    fn check_version(&self, version: Option<&WorkerDeploymentVersion>, may_add: bool) -> Result<(), Error> {
        match version {
            Some(version) if !may_add && self.version(&version.build_id).is_none() => Err(Error::not_found(format!(
                "build ID '{}' not found in Worker Deployment '{}'",
                version.build_id,
                self.name()
            ))),
            _ => Ok(()),
        }
    }

    fn add_missing(&mut self, version: Option<&WorkerDeploymentVersion>, env: &Env) -> Result<(), Error> {
        match version {
            Some(version) if self.version(&version.build_id).is_none() => {
                self.add_version(&version.build_id, String::new(), env).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// The routing is this from now on.
    fn route(&mut self, routing: RoutingConfig, ramp_changed: bool, env: &Env) {
        for version in &mut self.state.versions {
            let is = |named: &Version| named.as_ref().is_some_and(|named| named.build_id == version.build_id);
            let role = if is(&routing.current_deployment_version) {
                Role::Current
            } else if is(&routing.ramping_deployment_version) {
                Role::Ramping
            } else {
                Role::None
            };
            take_role(version, role, ramp_changed, env.now);
        }
        self.state.routing_config = Some(routing);
        self.news_for_queues();
    }
}

fn end_ramp(routing: &mut RoutingConfig) {
    routing.ramping_version.clear();
    routing.ramping_deployment_version = None;
    routing.ramping_version_percentage = 0.0;
}

fn misses_queues(version: &WorkerDeploymentVersion, role: &str) -> Error {
    Error::failed_precondition(format!(
        "proposed {role} version '{}' is missing active task queues from the current version; these would become unversioned if it is set as the {role} version",
        versions::text(version)
    ))
}
