//! Who polled a queue, and when.

use std::{borrow::Cow, collections::HashMap};

use perdure_proto::{
    temporal::api::{
        common::v1::WorkerVersionCapabilities, deployment::v1::WorkerDeploymentOptions, taskqueue::v1::PollerInfo,
    },
    versions,
};
use perdure_types::{Duration, Timestamp};

/// Identities remembered for one queue. Beyond that, the one longest unheard of goes.
const MAX_POLLERS: usize = 1_000;

/// What a poller is told to have asked for when it set no limit, as Temporal does.
pub(crate) const UNLIMITED_PER_SECOND: f64 = 100_000.0;

/// What one poll says about its worker.
pub(crate) struct PollerView<'a> {
    pub identity: &'a str,
    pub rate_per_second: Option<f64>,
    pub capabilities: Option<&'a WorkerVersionCapabilities>,
    pub deployment: Option<&'a WorkerDeploymentOptions>,
}

struct Poller {
    last_access: Timestamp,
    rate_per_second: Option<f64>,
    capabilities: Option<Box<WorkerVersionCapabilities>>,
    deployment: Option<Box<WorkerDeploymentOptions>>,
}

/// The pollers of one queue by identity, and those with a version by that too: one process may have workers of several.
#[derive(Default)]
pub(crate) struct Pollers {
    by_identity: HashMap<Box<str>, Poller>,
}

/// Clones only what changed: the same worker says the same in each poll.
fn update<T: Clone + PartialEq>(slot: &mut Option<Box<T>>, value: Option<&T>) {
    if slot.as_deref() != value {
        *slot = value.cloned().map(Box::new);
    }
}

const SEPARATOR: char = '\0';

fn key<'a>(view: &PollerView<'a>) -> Cow<'a, str> {
    let versioned = view.capabilities.filter(|capabilities| capabilities.use_versioning);
    match (versions::of_worker(view.deployment), versioned) {
        (Some(version), _) => format!("{}{SEPARATOR}{}", view.identity, versions::text(&version)).into(),
        (None, Some(older)) => format!("{}{SEPARATOR}{}", view.identity, older.build_id).into(),
        (None, None) => view.identity.into(),
    }
}

fn identity_of(key: &str) -> &str {
    key.split(SEPARATOR).next().unwrap_or(key)
}

impl Pollers {
    pub fn seen(&mut self, now: Timestamp, view: &PollerView) {
        let key = key(view);
        if let Some(poller) = self.by_identity.get_mut(&*key) {
            poller.last_access = now;
            poller.rate_per_second = view.rate_per_second;
            update(&mut poller.capabilities, view.capabilities);
            update(&mut poller.deployment, view.deployment);
            return;
        }
        if self.by_identity.len() >= MAX_POLLERS
            && let Some(oldest) = self.by_identity.iter().min_by_key(|(_, p)| p.last_access).map(|(i, _)| i.clone())
        {
            self.by_identity.remove(&oldest);
        }
        let poller = Poller {
            last_access: now,
            rate_per_second: view.rate_per_second,
            capabilities: view.capabilities.cloned().map(Box::new),
            deployment: view.deployment.cloned().map(Box::new),
        };
        self.by_identity.insert(key.into(), poller);
    }

    pub fn forget(&mut self, identity: &str) {
        self.by_identity.retain(|key, _| identity_of(key) != identity);
    }

    pub fn forget_all(&mut self) {
        self.by_identity.clear();
    }

    /// Drops those not seen since `earliest`.
    pub fn expire(&mut self, earliest: Timestamp) {
        self.by_identity.retain(|_, poller| poller.last_access >= earliest);
    }

    /// Those seen within `window`, the latest first.
    #[allow(deprecated)]
    pub fn recent(&self, now: Timestamp, window: Duration) -> Vec<PollerInfo> {
        let all = self.by_identity.iter().map(|(identity, poller)| (&**identity, poller));
        let mut recent: Vec<(&str, &Poller)> = all.filter(|(_, p)| now.since(p.last_access) <= window).collect();
        recent.sort_by(|(a, x), (b, y)| y.last_access.cmp(&x.last_access).then_with(|| a.cmp(b)));
        let info = |(identity, poller): (&str, &Poller)| PollerInfo {
            last_access_time: poller.last_access.to_proto(),
            identity: identity_of(identity).to_owned(),
            rate_per_second: poller.rate_per_second.unwrap_or(UNLIMITED_PER_SECOND),
            worker_version_capabilities: poller.capabilities.as_deref().cloned(),
            deployment_options: poller.deployment.as_deref().cloned(),
        };
        recent.into_iter().map(info).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(identity: &str) -> PollerView<'_> {
        PollerView { identity, rate_per_second: None, capabilities: None, deployment: None }
    }

    #[test]
    fn latest_first_and_only_recent() {
        let mut pollers = Pollers::default();
        for (at, identity) in [(1, "a"), (2, "b"), (3, "c"), (4, "a")] {
            pollers.seen(Timestamp(at), &view(identity));
        }
        let names =
            |now| -> Vec<_> { pollers.recent(Timestamp(now), Duration(2)).into_iter().map(|p| p.identity).collect() };
        assert_eq!(names(4), ["a", "c", "b"]);
        assert_eq!(names(5), ["a", "c"]);
        assert!(names(7).is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut pollers = Pollers::default();
        for i in 0..MAX_POLLERS + 10 {
            pollers.seen(Timestamp(i as i64), &view(&i.to_string()));
        }
        assert_eq!(pollers.by_identity.len(), MAX_POLLERS);
        assert!(!pollers.by_identity.contains_key("0"));
    }
}
