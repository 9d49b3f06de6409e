//! What becomes of a version when work is led to it, or away from it.

use perdure_proto::{
    perdure::state::v1::DeploymentVersionState,
    temporal::api::enums::v1::{VersionDrainageStatus as Drainage, WorkerDeploymentVersionStatus as Status},
};
use perdure_types::Timestamp;

/// Which part of the traffic a version gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Current,
    Ramping,
    None,
}

pub(crate) fn is_active(version: &DeploymentVersionState) -> bool {
    version.current_since_ns != 0 || version.ramping_since_ns != 0
}

/// The version has this role now; `ramp_changed`: its share may be another.
pub(crate) fn take_role(version: &mut DeploymentVersionState, role: Role, ramp_changed: bool, now: Timestamp) {
    let now = now.as_nanos();
    let was_active = is_active(version);
    let before = (version.current_since_ns != 0, version.ramping_since_ns != 0);
    let after = (role == Role::Current, role == Role::Ramping);
    if before == after {
        if after.1 && ramp_changed {
            version.routing_changed_time_ns = now;
        }
        return;
    }
    version.routing_changed_time_ns = now;
    version.current_since_ns = if after.0 { now } else { 0 };
    version.ramping_since_ns = if after.1 { now } else { 0 };
    if role == Role::None {
        version.set_status(Status::Draining);
        version.last_deactivation_time_ns = now;
        version.set_drainage(Drainage::Draining);
        version.drainage_changed_time_ns = now;
        version.drainage_checked_time_ns = now;
        return;
    }
    version.set_status(if after.0 { Status::Current } else { Status::Ramping });
    if after.0 {
        version.last_current_time_ns = now;
    }
    if !was_active {
        if version.first_activation_time_ns == 0 {
            version.first_activation_time_ns = now;
        }
        version.last_deactivation_time_ns = 0;
        version.set_drainage(Drainage::Unspecified);
        version.drainage_changed_time_ns = 0;
        version.drainage_checked_time_ns = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_drains_when_it_loses_its_last_role_and_no_more_when_it_gets_one() {
        let mut version = DeploymentVersionState::default();
        take_role(&mut version, Role::Ramping, true, Timestamp(1));
        assert_eq!(
            (version.status(), version.ramping_since_ns, version.first_activation_time_ns),
            (Status::Ramping, 1, 1)
        );
        take_role(&mut version, Role::Current, false, Timestamp(2));
        assert_eq!((version.status(), version.current_since_ns, version.ramping_since_ns), (Status::Current, 2, 0));
        take_role(&mut version, Role::None, false, Timestamp(3));
        assert_eq!((version.status(), version.drainage()), (Status::Draining, Drainage::Draining));
        take_role(&mut version, Role::Current, false, Timestamp(4));
        assert_eq!(
            (version.drainage(), version.last_deactivation_time_ns, version.first_activation_time_ns),
            (Drainage::Unspecified, 0, 1)
        );
        assert_eq!(version.last_current_time_ns, 4);
    }

    #[test]
    fn what_changes_nothing_leaves_no_mark() {
        let mut version = DeploymentVersionState { status: Status::Inactive as i32, ..Default::default() };
        let before = version.clone();
        take_role(&mut version, Role::None, true, Timestamp(5));
        assert_eq!(version, before);
    }
}
