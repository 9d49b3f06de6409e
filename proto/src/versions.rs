//! Versions of worker deployments, in the forms that clients of different age use: as a message, as `deployment:build`,
//! and, before that, as `deployment.build`.

#![allow(deprecated, reason = "older clients still send what newer ones replaced, and answers show both")]

use crate::temporal::api::{
    deployment::v1::{WorkerDeploymentOptions, WorkerDeploymentVersion},
    enums::v1::{VersioningBehavior, WorkerVersioningMode},
    workflow::v1::{
        VersioningOverride, WorkflowExecutionVersioningInfo,
        versioning_override::{Override, PinnedOverrideBehavior},
    },
};

/// How older clients name the workers without a version.
pub const UNVERSIONED: &str = "__unversioned__";

/// The version that a worker is of; `None`: it is unversioned.
pub fn of_worker(options: Option<&WorkerDeploymentOptions>) -> Option<WorkerDeploymentVersion> {
    let versioned = |options: &&WorkerDeploymentOptions| {
        options.worker_versioning_mode() == WorkerVersioningMode::Versioned
            && !options.deployment_name.is_empty()
            && !options.build_id.is_empty()
    };
    options.filter(versioned).map(|options| version(&options.deployment_name, &options.build_id))
}

pub fn version(deployment_name: &str, build_id: &str) -> WorkerDeploymentVersion {
    WorkerDeploymentVersion { deployment_name: deployment_name.to_owned(), build_id: build_id.to_owned() }
}

/// `deployment:build`.
pub fn text(version: &WorkerDeploymentVersion) -> String {
    format!("{}:{}", version.deployment_name, version.build_id)
}

/// `deployment.build`, or [`UNVERSIONED`].
pub fn legacy_text(version: Option<&WorkerDeploymentVersion>) -> String {
    version.map_or_else(|| UNVERSIONED.to_owned(), |v| format!("{}.{}", v.deployment_name, v.build_id))
}

/// From either text form. `Ok(None)`: unversioned; an error says what is wrong.
pub fn parse(text: &str) -> Result<Option<WorkerDeploymentVersion>, String> {
    if text == UNVERSIONED {
        return Ok(None);
    }
    let Some((name, build_id)) = text.split_once(['.', ':']) else {
        return Err(format!("expected delimiter ':' or '.' not found in version string {text}"));
    };
    if name.is_empty() {
        return Err(format!("deployment name is empty in version string {text}"));
    }
    if build_id.is_empty() {
        return Err(format!("build id is empty in version string {text}"));
    }
    Ok(Some(version(name, build_id)))
}

/// What an override makes of an execution; until it is fulfilled a one-time override pins, too.
pub fn override_behavior(over: &VersioningOverride) -> VersioningBehavior {
    match &over.r#override {
        Some(Override::AutoUpgrade(true)) => VersioningBehavior::AutoUpgrade,
        Some(Override::Pinned(_) | Override::OneTime(_)) => VersioningBehavior::Pinned,
        Some(Override::AutoUpgrade(false)) | None => over.behavior(),
    }
}

/// Where an override leads, unless it leaves that to the task queue.
pub fn override_target(over: &VersioningOverride) -> Option<WorkerDeploymentVersion> {
    match &over.r#override {
        Some(Override::Pinned(pinned)) => pinned.version.clone(),
        Some(Override::OneTime(once)) => once.target_deployment_version.clone(),
        Some(Override::AutoUpgrade(_)) => None,
        None if over.behavior() != VersioningBehavior::Pinned => None,
        None if !over.pinned_version.is_empty() => parse(&over.pinned_version).ok().flatten(),
        None => over.deployment.as_ref().map(|old| version(&old.series_name, &old.build_id)),
    }
}

/// Pinned for good, as runs that follow inherit it.
pub fn is_pinned(over: &VersioningOverride) -> bool {
    match &over.r#override {
        Some(Override::Pinned(pinned)) => pinned.behavior() == PinnedOverrideBehavior::Pinned,
        Some(Override::OneTime(_) | Override::AutoUpgrade(_)) => false,
        None => over.behavior() == VersioningBehavior::Pinned,
    }
}

/// Fills in what older clients look at.
pub fn with_legacy(mut info: WorkflowExecutionVersioningInfo) -> WorkflowExecutionVersioningInfo {
    if info.version.is_empty() && info.deployment_version.is_some() {
        info.version = legacy_text(info.deployment_version.as_ref());
    }
    if let Some(transition) = &mut info.version_transition
        && transition.version.is_empty()
    {
        transition.version = legacy_text(transition.deployment_version.as_ref());
    }
    if let Some(over) = &mut info.versioning_override
        && over.behavior() == VersioningBehavior::Unspecified
    {
        match &over.r#override {
            Some(Override::AutoUpgrade(true)) => over.set_behavior(VersioningBehavior::AutoUpgrade),
            Some(Override::Pinned(pinned)) => {
                over.pinned_version = legacy_text(pinned.version.as_ref());
                over.set_behavior(VersioningBehavior::Pinned);
            }
            Some(Override::OneTime(_) | Override::AutoUpgrade(false)) | None => {}
        }
    }
    info
}

/// What names of deployments and build ids may be. `field` is what the refusal calls it.
pub fn check_name(field: &str, name: &str, max_id_length: i64) -> Result<(), String> {
    // Both stand in one id, together with a prefix of this length.
    const PREFIX_LENGTH: i64 = 39;
    if name.is_empty() {
        return Err(format!("{field} cannot be empty"));
    }
    if name.len() as i64 > (max_id_length - PREFIX_LENGTH) / 2 {
        return Err(format!("size of {field} larger than the maximum allowed"));
    }
    if field == DEPLOYMENT_NAME
        && let Some(delimiter) = ['.', ':'].into_iter().find(|delimiter| name.contains(*delimiter))
    {
        return Err(format!("worker deployment name cannot contain '{delimiter}'"));
    }
    if name.starts_with("__") {
        return Err(format!("{field} cannot start with '__'"));
    }
    Ok(())
}

/// How refusals call the parts of a version.
pub const DEPLOYMENT_NAME: &str = "WorkerDeploymentName";
pub const BUILD_ID: &str = "BuildID";

pub fn check_version(version: &WorkerDeploymentVersion, max_id_length: i64) -> Result<(), String> {
    check_name(DEPLOYMENT_NAME, &version.deployment_name, max_id_length)?;
    check_name(BUILD_ID, &version.build_id, max_id_length)
}

/// Whether an override says something that can be done.
pub fn check_override(over: &VersioningOverride, max_id_length: i64) -> Result<(), String> {
    let refuse = |message: &str| Err(message.to_owned());
    let version = |version: &Option<WorkerDeploymentVersion>| match version {
        Some(version) => check_version(version, max_id_length),
        None => Ok(()),
    };
    match &over.r#override {
        Some(Override::AutoUpgrade(true)) => Ok(()),
        Some(Override::AutoUpgrade(false)) => refuse("auto-upgrade override must be true"),
        Some(Override::Pinned(pinned)) if pinned.version.is_none() => {
            refuse("must provide version if override is pinned.")
        }
        Some(Override::Pinned(pinned)) if pinned.behavior() == PinnedOverrideBehavior::Unspecified => {
            refuse("must specify pinned override behavior if override is pinned.")
        }
        Some(Override::Pinned(pinned)) => version(&pinned.version),
        Some(Override::OneTime(once)) if once.target_deployment_version.is_none() => {
            refuse("must provide target deployment version if override is one-time.")
        }
        Some(Override::OneTime(once)) => version(&once.target_deployment_version),
        None => match over.behavior() {
            VersioningBehavior::Pinned if over.deployment.is_some() => Ok(()),
            VersioningBehavior::Pinned if over.pinned_version.is_empty() => {
                refuse("must provide deployment (deprecated) or pinned version if behavior is 'PINNED'")
            }
            VersioningBehavior::Pinned => parse(&over.pinned_version).map(drop).map_err(|_| {
                let text = &over.pinned_version;
                format!("invalid version string {text:?}, expected format is \"<deployment_name>.<build_id>\"")
            }),
            VersioningBehavior::AutoUpgrade if over.deployment.is_some() => {
                refuse("only provide deployment if behavior is 'PINNED'")
            }
            VersioningBehavior::AutoUpgrade if !over.pinned_version.is_empty() => {
                refuse("only provide pinned version if behavior is 'PINNED'")
            }
            VersioningBehavior::AutoUpgrade => Ok(()),
            VersioningBehavior::Unspecified => refuse("override behavior is required"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_both_forms() {
        assert_eq!(parse("d.b"), Ok(Some(version("d", "b"))));
        assert_eq!(parse("d:1.0"), Ok(Some(version("d", "1.0"))));
        assert_eq!(parse(UNVERSIONED), Ok(None));
        assert!(parse("d").is_err() && parse(".b").is_err() && parse("d:").is_err());
        assert_eq!(parse(&legacy_text(None)), Ok(None));
        assert_eq!(parse(&text(&version("d", "b:2"))), Ok(Some(version("d", "b:2"))));
    }

    #[test]
    fn overrides_of_all_ages_mean_the_same() {
        let old = VersioningOverride {
            behavior: VersioningBehavior::Pinned as i32,
            pinned_version: "d.b".into(),
            ..Default::default()
        };
        let new = VersioningOverride {
            r#override: Some(Override::Pinned(
                crate::temporal::api::workflow::v1::versioning_override::PinnedOverride {
                    behavior: PinnedOverrideBehavior::Pinned as i32,
                    version: Some(version("d", "b")),
                },
            )),
            ..Default::default()
        };
        for over in [old, new] {
            assert_eq!(override_behavior(&over), VersioningBehavior::Pinned);
            assert_eq!(override_target(&over), Some(version("d", "b")));
            assert!(is_pinned(&over));
        }
    }
}
