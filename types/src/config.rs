//! The knobs that change how executions behave, under Temporal's dynamic configuration key names.

use crate::Duration;

/// Limits and timeouts of executions. Defaults are Temporal's.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Events after which a run is terminated.
    pub history_count_error: i64,
    /// Events after which the worker is told to continue as new.
    pub history_count_suggest_continue_as_new: i64,
    /// Bytes after which a run is terminated.
    pub history_size_error_bytes: i64,
    pub history_size_suggest_continue_as_new_bytes: i64,
    /// Largest payload set of one request or command, bytes.
    pub blob_size_error_bytes: i64,
    pub memo_size_error_bytes: i64,
    /// Longest id (workflow, request, activity, timer, signal name, task queue, …), characters.
    pub max_id_length: i64,
    pub pending_activities_error: i64,
    pub pending_child_executions_error: i64,
    pub pending_signals_error: i64,
    pub pending_cancel_requests_error: i64,
    pub pending_nexus_operations: i64,
    pub nexus_service_name_length: i64,
    pub nexus_operation_name_length: i64,
    pub nexus_operation_token_length: i64,
    pub nexus_header_size_bytes: i64,
    /// Cap on an operation's schedule-to-close timeout; zero: none.
    pub nexus_schedule_to_close_max: Duration,
    /// Between attempts to start or cancel an operation: the first pause, and the longest.
    pub nexus_retry_initial_interval: Duration,
    pub nexus_retry_max_interval: Duration,
    /// Completion callbacks of one workflow.
    pub callbacks_per_workflow: i64,
    /// Of one update.
    pub callbacks_per_update: i64,
    /// Of one execution of another kind: an activity, a Nexus operation.
    pub callbacks_per_execution: i64,
    pub callback_url_length: i64,
    pub callback_header_size_bytes: i64,
    pub callback_retry_initial_interval: Duration,
    pub callback_retry_max_interval: Duration,
    /// Signals that one run may receive.
    pub signals_per_execution: i64,
    pub updates_in_flight: i64,
    pub updates_total: i64,
    /// Update count from which a worker is told to continue as new, percent of `updates_total`.
    pub updates_suggest_continue_as_new_percent: i64,
    /// Events that may wait for the end of a started workflow task: above, the task fails.
    pub buffered_events: i64,
    pub buffered_events_bytes: i64,
    pub default_workflow_task_timeout: Duration,
    pub max_workflow_task_timeout: Duration,
    /// Default of the retry policy: first backoff, growth, and cap as a multiple of the first.
    pub default_activity_retry_initial_interval: Duration,
    pub default_activity_retry_backoff_coefficient: f64,
    pub default_activity_retry_max_interval_coefficient: f64,
    /// Whether activities may go to the worker in the answer to the completion that scheduled them. Temporal ships this
    /// off.
    pub activity_eager_execution: bool,
    /// Whether a start may bring its first workflow task back in its answer.
    pub eager_workflow_start: bool,
    /// Longest wait of a history long poll or a task poll before the server answers with nothing.
    pub long_poll: Duration,
    /// Attempts of a workflow task before its retries back off to this interval at most.
    pub workflow_task_retry_max_interval: Duration,
    /// Cap on one page of history sent to a worker or client, events.
    pub history_page_events: i64,
    /// Cap on one page of history, bytes.
    pub history_page_bytes: i64,
    /// Versions of one worker deployment.
    pub versions_in_deployment: i64,
    /// Task queues that workers of one version poll.
    pub task_queues_in_deployment_version: i64,
    /// How long after a version got no more new work its open workflows are first looked for, and then how often.
    pub version_drainage_grace: Duration,
    pub version_drainage_refresh: Duration,
    /// The older forms of worker versioning: whether version sets and rules are served, and workers that follow them.
    pub version_sets: bool,
    pub versioning_rules: bool,
    pub versioned_workers: bool,
    /// Longest build id.
    pub build_id_length: i64,
    /// Of one task queue.
    pub version_sets_in_queue: i64,
    pub build_ids_in_queue: i64,
    pub assignment_rules_in_queue: i64,
    pub redirect_rules_in_queue: i64,
    /// Build ids that redirect rules of one queue lead to one.
    pub upstream_build_ids: i64,
    /// In one question for what can reach them.
    pub reachability_build_ids: i64,
    pub reachability_task_queues: i64,
    /// For how long a set, or a rule, that is no longer in force may have sent workflows that lists do not show yet.
    pub reachability_set_since_default: Duration,
    pub reachability_rule_grace: Duration,
    /// What Nexus endpoints may be: longest name and URL, largest description.
    pub nexus_endpoint_name_length: i64,
    pub nexus_endpoint_url_length: i64,
    pub nexus_endpoint_description_bytes: i64,
    /// Endpoints on a page: if the client does not say, and at most.
    pub nexus_endpoints_default_page: i64,
    pub nexus_endpoints_page: i64,
    /// Where handlers outside send completions; empty: to this node's HTTP API.
    pub nexus_callback_url: String,
    /// Where callbacks may go beside this cluster: rules in JSON. Empty: nowhere.
    pub callback_addresses: String,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history_count_error: 51_200,
            history_count_suggest_continue_as_new: 4_096,
            history_size_error_bytes: 50 << 20,
            history_size_suggest_continue_as_new_bytes: 4 << 20,
            blob_size_error_bytes: 2 << 20,
            memo_size_error_bytes: 2 << 20,
            max_id_length: 1_000,
            pending_activities_error: 2_000,
            pending_child_executions_error: 2_000,
            pending_signals_error: 2_000,
            pending_cancel_requests_error: 2_000,
            pending_nexus_operations: 30,
            nexus_service_name_length: 1_000,
            nexus_operation_name_length: 1_000,
            nexus_operation_token_length: 4_096,
            nexus_header_size_bytes: 8_192,
            nexus_schedule_to_close_max: Duration(0),
            nexus_retry_initial_interval: Duration::from_secs(1),
            nexus_retry_max_interval: Duration::from_secs(3_600),
            callbacks_per_workflow: 32,
            callbacks_per_update: 32,
            callbacks_per_execution: 32,
            callback_url_length: 1_000,
            callback_header_size_bytes: 8_192,
            callback_retry_initial_interval: Duration::from_secs(1),
            callback_retry_max_interval: Duration::from_secs(3_600),
            signals_per_execution: 10_000,
            updates_in_flight: 10,
            updates_total: 2_000,
            updates_suggest_continue_as_new_percent: 90,
            buffered_events: 100,
            buffered_events_bytes: 2 << 20,
            default_workflow_task_timeout: Duration::from_secs(10),
            max_workflow_task_timeout: Duration::from_secs(120),
            default_activity_retry_initial_interval: Duration::from_secs(1),
            default_activity_retry_backoff_coefficient: 2.0,
            default_activity_retry_max_interval_coefficient: 100.0,
            activity_eager_execution: true,
            eager_workflow_start: true,
            long_poll: Duration::from_secs(20),
            workflow_task_retry_max_interval: Duration::from_secs(300),
            history_page_events: 256,
            history_page_bytes: 4 << 20,
            versions_in_deployment: 100,
            task_queues_in_deployment_version: 100,
            version_drainage_grace: Duration::from_secs(10),
            version_drainage_refresh: Duration::from_secs(30),
            version_sets: true,
            versioning_rules: true,
            versioned_workers: true,
            build_id_length: 255,
            version_sets_in_queue: 10,
            build_ids_in_queue: 100,
            assignment_rules_in_queue: 100,
            redirect_rules_in_queue: 500,
            upstream_build_ids: 50,
            reachability_build_ids: 5,
            reachability_task_queues: 20,
            reachability_set_since_default: Duration::from_secs(300),
            reachability_rule_grace: Duration::from_secs(180),
            nexus_endpoint_name_length: 200,
            nexus_endpoint_url_length: 4 << 10,
            nexus_endpoint_description_bytes: 20_000,
            nexus_endpoints_default_page: 100,
            nexus_endpoints_page: 1_000,
            nexus_callback_url: String::new(),
            callback_addresses: String::new(),
        }
    }
}

/// A knob that does not exist, or a value that it does not take.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    #[error("unknown dynamic configuration key {key:?}; the nearest known key is {nearest:?}")]
    UnknownKey { key: String, nearest: &'static str },
    #[error("dynamic configuration key {key} takes a {expected}, got {value:?}")]
    BadValue { key: &'static str, expected: &'static str, value: String },
    #[error("expected KEY=VALUE, got {0:?}")]
    NotAPair(String),
}

enum Knob {
    Int(fn(&mut Limits) -> &mut i64),
    Float(fn(&mut Limits) -> &mut f64),
    Bool(fn(&mut Limits) -> &mut bool),
    /// Seconds as a number, or with a unit: 10s, 500ms, 2m, 1h.
    Span(fn(&mut Limits) -> &mut Duration),
    Text(fn(&mut Limits) -> &mut String),
}

const KNOBS: &[(&str, Knob)] = &[
    ("limit.historyCount.error", Knob::Int(|l| &mut l.history_count_error)),
    ("limit.historyCount.suggestContinueAsNew", Knob::Int(|l| &mut l.history_count_suggest_continue_as_new)),
    ("limit.historySize.error", Knob::Int(|l| &mut l.history_size_error_bytes)),
    ("limit.historySize.suggestContinueAsNew", Knob::Int(|l| &mut l.history_size_suggest_continue_as_new_bytes)),
    ("limit.blobSize.error", Knob::Int(|l| &mut l.blob_size_error_bytes)),
    ("limit.memoSize.error", Knob::Int(|l| &mut l.memo_size_error_bytes)),
    ("limit.maxIDLength", Knob::Int(|l| &mut l.max_id_length)),
    ("limit.numPendingActivities.error", Knob::Int(|l| &mut l.pending_activities_error)),
    ("limit.numPendingChildExecutions.error", Knob::Int(|l| &mut l.pending_child_executions_error)),
    ("limit.numPendingSignals.error", Knob::Int(|l| &mut l.pending_signals_error)),
    ("limit.numPendingCancelRequests.error", Knob::Int(|l| &mut l.pending_cancel_requests_error)),
    ("component.nexusoperations.limit.operation.concurrency", Knob::Int(|l| &mut l.pending_nexus_operations)),
    ("component.nexusoperations.limit.service.name.length", Knob::Int(|l| &mut l.nexus_service_name_length)),
    ("component.nexusoperations.limit.operation.name.length", Knob::Int(|l| &mut l.nexus_operation_name_length)),
    ("component.nexusoperations.limit.operation.token.length", Knob::Int(|l| &mut l.nexus_operation_token_length)),
    ("component.nexusoperations.limit.header.size", Knob::Int(|l| &mut l.nexus_header_size_bytes)),
    ("component.nexusoperations.limit.scheduleToCloseTimeout", Knob::Span(|l| &mut l.nexus_schedule_to_close_max)),
    ("component.nexusoperations.retryPolicy.initialInterval", Knob::Span(|l| &mut l.nexus_retry_initial_interval)),
    ("component.nexusoperations.retryPolicy.maxInterval", Knob::Span(|l| &mut l.nexus_retry_max_interval)),
    ("system.maxCallbacksPerWorkflow", Knob::Int(|l| &mut l.callbacks_per_workflow)),
    ("system.maxCallbacksPerUpdateID", Knob::Int(|l| &mut l.callbacks_per_update)),
    ("callback.maxPerExecution", Knob::Int(|l| &mut l.callbacks_per_execution)),
    ("frontend.callbackURLMaxLength", Knob::Int(|l| &mut l.callback_url_length)),
    ("frontend.callbackHeaderMaxLength", Knob::Int(|l| &mut l.callback_header_size_bytes)),
    ("component.callbacks.retryPolicy.initialInterval", Knob::Span(|l| &mut l.callback_retry_initial_interval)),
    ("component.callbacks.retryPolicy.maxInterval", Knob::Span(|l| &mut l.callback_retry_max_interval)),
    ("history.maximumSignalsPerExecution", Knob::Int(|l| &mut l.signals_per_execution)),
    ("history.maxInFlightUpdates", Knob::Int(|l| &mut l.updates_in_flight)),
    ("history.maxTotalUpdates", Knob::Int(|l| &mut l.updates_total)),
    ("history.maximumBufferedEventsBatch", Knob::Int(|l| &mut l.buffered_events)),
    ("history.maximumBufferedEventsSizeInBytes", Knob::Int(|l| &mut l.buffered_events_bytes)),
    ("history.defaultWorkflowTaskTimeout", Knob::Span(|l| &mut l.default_workflow_task_timeout)),
    (
        "history.defaultActivityRetryPolicy.InitialIntervalInSeconds",
        Knob::Span(|l| &mut l.default_activity_retry_initial_interval),
    ),
    (
        "history.defaultActivityRetryPolicy.BackoffCoefficient",
        Knob::Float(|l| &mut l.default_activity_retry_backoff_coefficient),
    ),
    (
        "history.defaultActivityRetryPolicy.MaximumIntervalCoefficient",
        Knob::Float(|l| &mut l.default_activity_retry_max_interval_coefficient),
    ),
    ("system.enableActivityEagerExecution", Knob::Bool(|l| &mut l.activity_eager_execution)),
    ("system.enableEagerWorkflowStart", Knob::Bool(|l| &mut l.eager_workflow_start)),
    ("history.longPollExpirationInterval", Knob::Span(|l| &mut l.long_poll)),
    ("matching.maxVersionsInDeployment", Knob::Int(|l| &mut l.versions_in_deployment)),
    ("matching.maxTaskQueuesInDeploymentVersion", Knob::Int(|l| &mut l.task_queues_in_deployment_version)),
    ("matching.wv.VersionDrainageStatusVisibilityGracePeriod", Knob::Span(|l| &mut l.version_drainage_grace)),
    ("matching.wv.VersionDrainageStatusRefreshInterval", Knob::Span(|l| &mut l.version_drainage_refresh)),
    ("frontend.workerVersioningDataAPIs", Knob::Bool(|l| &mut l.version_sets)),
    ("frontend.workerVersioningRuleAPIs", Knob::Bool(|l| &mut l.versioning_rules)),
    ("frontend.workerVersioningWorkflowAPIs", Knob::Bool(|l| &mut l.versioned_workers)),
    ("limit.workerBuildIdSize", Knob::Int(|l| &mut l.build_id_length)),
    ("limit.versionCompatibleSetLimitPerQueue", Knob::Int(|l| &mut l.version_sets_in_queue)),
    ("limit.versionBuildIdLimitPerQueue", Knob::Int(|l| &mut l.build_ids_in_queue)),
    ("limit.wv.AssignmentRuleLimitPerQueue", Knob::Int(|l| &mut l.assignment_rules_in_queue)),
    ("limit.wv.RedirectRuleLimitPerQueue", Knob::Int(|l| &mut l.redirect_rules_in_queue)),
    ("limit.wv.RedirectRuleMaxUpstreamBuildIDsPerQueue", Knob::Int(|l| &mut l.upstream_build_ids)),
    ("limit.reachabilityQueryBuildIds", Knob::Int(|l| &mut l.reachability_build_ids)),
    ("limit.reachabilityTaskQueueScan", Knob::Int(|l| &mut l.reachability_task_queues)),
    ("frontend.reachabilityQuerySetDurationSinceDefault", Knob::Span(|l| &mut l.reachability_set_since_default)),
    ("matching.wv.ReachabilityBuildIdVisibilityGracePeriod", Knob::Span(|l| &mut l.reachability_rule_grace)),
    ("component.nexusoperations.callback.endpoint.template", Knob::Text(|l| &mut l.nexus_callback_url)),
    ("component.callbacks.allowedAddresses", Knob::Text(|l| &mut l.callback_addresses)),
    ("limit.endpointNameMaxLength", Knob::Int(|l| &mut l.nexus_endpoint_name_length)),
    ("limit.endpointExternalURLMaxLength", Knob::Int(|l| &mut l.nexus_endpoint_url_length)),
    ("limit.endpointDescriptionMaxSize", Knob::Int(|l| &mut l.nexus_endpoint_description_bytes)),
    ("limit.endpointListDefaultPageSize", Knob::Int(|l| &mut l.nexus_endpoints_default_page)),
    ("limit.endpointListMaxPageSize", Knob::Int(|l| &mut l.nexus_endpoints_page)),
    ("frontend.historyMaxPageSize", Knob::Int(|l| &mut l.history_page_events)),
];

impl Limits {
    /// Sets one knob from `KEY=VALUE`. Keys are compared without regard to case, as Temporal does.
    pub fn set(&mut self, pair: &str) -> Result<(), ConfigError> {
        let (key, value) = pair.split_once('=').ok_or_else(|| ConfigError::NotAPair(pair.to_owned()))?;
        let (key, value) = (key.trim(), value.trim());
        let Some((name, knob)) = KNOBS.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)) else {
            let nearest = KNOBS.iter().map(|(name, _)| *name).min_by_key(|name| edit_distance(name, key)).unwrap_or("");
            return Err(ConfigError::UnknownKey { key: key.to_owned(), nearest });
        };
        let bad = |expected| ConfigError::BadValue { key: name, expected, value: value.to_owned() };
        match knob {
            Knob::Int(field) => {
                *field(self) = value.parse().ok().filter(|n| *n > 0).ok_or_else(|| bad("positive integer"))?
            }
            Knob::Float(field) => {
                *field(self) =
                    value.parse().ok().filter(|n: &f64| *n >= 1.0).ok_or_else(|| bad("number of at least 1"))?
            }
            Knob::Bool(field) => *field(self) = value.to_lowercase().parse().map_err(|_| bad("boolean"))?,
            Knob::Text(field) => value.clone_into(field(self)),
            Knob::Span(field) => *field(self) = parse_span(value).ok_or_else(|| bad("duration such as 10s"))?,
        }
        Ok(())
    }
}

fn parse_span(text: &str) -> Option<Duration> {
    let text = text.trim_matches('"');
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: i64 = text[..digits].parse().ok()?;
    let millis = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    (number > 0).then(|| Duration::from_millis(number.saturating_mul(millis)))
}

/// Levenshtein distance without regard to case, for "did you mean".
pub fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knob_is_set_by_temporals_name() {
        let mut limits = Limits::default();
        limits.set("limit.historyCount.suggestContinueAsNew=50").expect("known key");
        assert_eq!(limits.history_count_suggest_continue_as_new, 50);
        limits.set("history.defaultWorkflowTaskTimeout=500ms").expect("known key");
        assert_eq!(limits.default_workflow_task_timeout, Duration::from_millis(500));
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        let mut limits = Limits::default();
        assert_eq!(
            limits.set("limit.historyCount.suggestContinueAsNow=5"),
            Err(ConfigError::UnknownKey {
                key: "limit.historyCount.suggestContinueAsNow".into(),
                nearest: "limit.historyCount.suggestContinueAsNew",
            })
        );
        assert!(matches!(limits.set("limit.blobSize.error=-1"), Err(ConfigError::BadValue { .. })));
        assert!(matches!(limits.set("limit.blobSize.error"), Err(ConfigError::NotAPair(_))));
        assert_eq!(limits, Limits::default());
    }
}
