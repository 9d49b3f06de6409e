//! The attributes that a query may name: those of the system, and the custom ones of a namespace.
//!
//! Custom attributes are kept as Temporal's SQL stores keep them, since tools show and change that form: as aliases of
//! numbered fields whose names tell their type (`Keyword01`). Users see the aliases only.

use std::collections::{BTreeMap, HashMap};

use perdure_proto::temporal::api::enums::v1::IndexedValueType;
use perdure_types::nexus;

pub type Kind = IndexedValueType;

use IndexedValueType::{Bool, Datetime, Double, Int, Keyword, KeywordList, Text};

/// Who sets a system attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SetBy {
    /// It is a column of every row.
    Row,
    /// It stands among the search attributes, put there by the server.
    Server,
    Anyone,
}

/// The system's attributes, by name.
pub const SYSTEM: [(&str, Kind); 33] = {
    let mut names = [("", Kind::Unspecified); 33];
    let mut i = 0;
    while i < names.len() {
        names[i] = (TABLE[i].0, TABLE[i].1);
        i += 1;
    }
    names
};

const TABLE: [(&str, Kind, SetBy); 33] = [
    ("BatcherNamespace", Keyword, SetBy::Anyone),
    ("BatcherUser", Keyword, SetBy::Anyone),
    ("BinaryChecksums", KeywordList, SetBy::Anyone),
    ("BuildIds", KeywordList, SetBy::Anyone),
    ("CloseTime", Datetime, SetBy::Row),
    ("ExecutionDuration", Int, SetBy::Row),
    ("ExecutionStatus", Keyword, SetBy::Row),
    ("ExecutionTime", Datetime, SetBy::Row),
    ("HistoryLength", Int, SetBy::Row),
    ("HistorySizeBytes", Int, SetBy::Row),
    ("ParentRunId", Keyword, SetBy::Row),
    ("ParentWorkflowId", Keyword, SetBy::Row),
    ("RootRunId", Keyword, SetBy::Row),
    ("RootWorkflowId", Keyword, SetBy::Row),
    ("RunId", Keyword, SetBy::Row),
    ("StartTime", Datetime, SetBy::Row),
    ("StateTransitionCount", Int, SetBy::Row),
    ("TaskQueue", Keyword, SetBy::Row),
    ("TemporalChangeVersion", KeywordList, SetBy::Anyone),
    ("TemporalExternalPayloadCount", Int, SetBy::Row),
    ("TemporalExternalPayloadSizeBytes", Int, SetBy::Row),
    ("TemporalNamespaceDivision", Keyword, SetBy::Anyone),
    ("TemporalPauseInfo", KeywordList, SetBy::Anyone),
    ("TemporalReportedProblems", KeywordList, SetBy::Anyone),
    ("TemporalSchedulePaused", Bool, SetBy::Anyone),
    ("TemporalScheduledById", Keyword, SetBy::Anyone),
    ("TemporalScheduledStartTime", Datetime, SetBy::Anyone),
    ("TemporalUsedWorkerDeploymentVersions", KeywordList, SetBy::Server),
    ("TemporalWorkerDeployment", Keyword, SetBy::Server),
    ("TemporalWorkerDeploymentVersion", Keyword, SetBy::Server),
    ("TemporalWorkflowVersioningBehavior", Keyword, SetBy::Server),
    ("WorkflowId", Keyword, SetBy::Row),
    ("WorkflowType", Keyword, SetBy::Row),
];

/// What the server puts among the search attributes of their rows.
const OF_NEXUS_OPERATIONS: [&str; 3] =
    [nexus::ENDPOINT_ATTRIBUTE, nexus::SERVICE_ATTRIBUTE, nexus::REQUEST_ID_ATTRIBUTE];

const PREFIX: &str = "Temporal";
/// Rows that have it are listed only when a query names it.
pub(crate) const DIVISION: &str = "TemporalNamespaceDivision";
/// Names that are taken though they are no attributes.
const RESERVED: [&str; 4] = ["NamespaceId", "Memo", "Encoding", "VisibilityTaskKey"];
/// Fields that a namespace may have of each kind.
const MOST_FIELDS: usize = 99;
/// Those that a custom attribute may have.
pub const CUSTOM_KINDS: [Kind; 7] = [Bool, Datetime, Double, Int, Keyword, KeywordList, Text];

fn system(name: &str) -> Option<(&'static str, Kind, SetBy)> {
    TABLE.binary_search_by(|(known, ..)| (*known).cmp(name)).ok().and_then(|i| TABLE.get(i).copied())
}

/// Whether a client may set the attribute; `None`: it is not one of the system's.
pub fn may_be_set(name: &str) -> Option<bool> {
    system(name).map(|(.., set_by)| set_by == SetBy::Anyone)
}

/// Whether no custom attribute may have this name.
pub fn is_reserved(name: &str) -> bool {
    system(name).is_some() || RESERVED.contains(&name) || name.starts_with(PREFIX)
}

/// An attribute that a query names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its true name: the query may have used another.
    pub name: String,
    pub kind: Kind,
    /// A value of the row itself; else it stands among the row's search attributes.
    pub(crate) of_row: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Rows {
    #[default]
    Workflows,
    Activities,
    NexusOperations,
}

/// The custom attributes of a namespace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attributes {
    custom: BTreeMap<String, Kind>,
    /// There are no others: the rows are no runs.
    only_these: bool,
    /// What the rows are of: their ids and types have names of their own.
    rows: Rows,
}

impl Attributes {
    /// From field → alias.
    pub fn from_aliases(aliases: &HashMap<String, String>) -> Self {
        let custom = aliases.iter().filter_map(|(field, alias)| Some((alias.clone(), kind_of_field(field)?)));
        Self { custom: custom.collect(), ..Self::default() }
    }

    /// Of rows that are no runs: these and no others.
    pub fn only<'a>(attributes: impl IntoIterator<Item = (&'a str, Kind)>) -> Self {
        let custom = attributes.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect();
        Self { custom, only_these: true, ..Self::default() }
    }

    /// Of the list of activities that no workflow has scheduled.
    pub fn of_activities(self) -> Self {
        Self { rows: Rows::Activities, ..self }
    }

    /// Of the list of Nexus operations that no workflow has scheduled.
    pub fn of_nexus_operations(self) -> Self {
        Self { rows: Rows::NexusOperations, ..self }
    }

    pub(crate) fn are_of_runs(&self) -> bool {
        !self.only_these
    }

    pub fn custom(&self) -> &BTreeMap<String, Kind> {
        &self.custom
    }

    /// The kind of an attribute that can be set, custom or of the system.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        if self.rows == Rows::NexusOperations && OF_NEXUS_OPERATIONS.contains(&name) {
            return Some(Keyword);
        }
        system(name).map(|(_, kind, _)| kind).or_else(|| self.custom.get(name).copied())
    }

    pub(crate) fn resolve(&self, name: &str) -> Option<Attribute> {
        let of_system = |name: &str| {
            system(name).map(|(name, kind, set_by)| Attribute {
                name: name.to_owned(),
                kind,
                of_row: set_by == SetBy::Row,
            })
        };
        let of_server = |name: &str| Some(Attribute { name: name.to_owned(), kind: Keyword, of_row: false });
        match (self.rows, name) {
            (Rows::Activities, "ActivityId") | (Rows::NexusOperations, "OperationId") => {
                return of_system("WorkflowId");
            }
            (Rows::Activities, "ActivityType") | (Rows::NexusOperations, "Operation") => {
                return of_system("WorkflowType");
            }
            (Rows::Activities, "ActivityStatus") => return of_system("ExecutionStatus"),
            (Rows::NexusOperations, "Endpoint") => return of_server(nexus::ENDPOINT_ATTRIBUTE),
            (Rows::NexusOperations, "Service") => return of_server(nexus::SERVICE_ATTRIBUTE),
            (Rows::NexusOperations, "RequestId") => return of_server(nexus::REQUEST_ID_ATTRIBUTE),
            _ => {}
        }
        if self.are_of_runs()
            && let Some(found) = of_system(name)
        {
            return Some(found);
        }
        if let Some(kind) = self.custom.get(name) {
            return Some(Attribute { name: name.to_owned(), kind: *kind, of_row: false });
        }
        match name.strip_prefix(PREFIX) {
            _ if self.only_these => None,
            Some("ScheduleId") => of_system("WorkflowId"),
            Some(rest) => of_system(rest),
            None if name == "ScheduleId" => of_system("WorkflowId"),
            None => of_system(&format!("{PREFIX}{name}")),
        }
    }
}

/// `Keyword01` to `Keyword99`, and so on for each kind.
fn kind_of_field(field: &str) -> Option<Kind> {
    let number = field.trim_start_matches(|c: char| !c.is_ascii_digit());
    let name = field.strip_suffix(number)?;
    let is_number = number.len() == 2 && number.parse().is_ok_and(|n: usize| (1..=MOST_FIELDS).contains(&n));
    CUSTOM_KINDS.into_iter().find(|kind| is_number && kind_name(*kind) == name)
}

/// A field of this kind that has no alias.
pub fn free_field(aliases: &HashMap<String, String>, kind: Kind) -> Option<String> {
    let name = kind_name(kind);
    let mut fields = (1..=MOST_FIELDS).map(|n| format!("{name}{n:02}"));
    CUSTOM_KINDS.contains(&kind).then(|| fields.find(|field| !aliases.contains_key(field))).flatten()
}

/// The field of an alias.
pub fn field_of(aliases: &HashMap<String, String>, alias: &str) -> Option<String> {
    aliases.iter().find(|(_, known)| *known == alias).map(|(field, _)| field.clone())
}

/// As SDKs write it into the metadata of a value.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "Unspecified",
        Text => "Text",
        Keyword => "Keyword",
        Int => "Int",
        Double => "Double",
        Bool => "Bool",
        Datetime => "Datetime",
        KeywordList => "KeywordList",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_once() {
        assert!(SYSTEM.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn fields_tell_their_kind() {
        assert_eq!(kind_of_field("Keyword01"), Some(Keyword));
        assert_eq!(kind_of_field("KeywordList12"), Some(KeywordList));
        for nonsense in ["Keyword", "Keyword00", "Keyword1", "Keyword100", "Word01", "01", ""] {
            assert_eq!(kind_of_field(nonsense), None, "{nonsense}");
        }
        let aliases = [("Int01".to_owned(), "Size".to_owned())].into();
        assert_eq!(free_field(&aliases, Int), Some("Int02".into()));
        assert_eq!(free_field(&aliases, Kind::Unspecified), None);
    }

    #[test]
    fn names_resolve() {
        let attributes = Attributes::from_aliases(&[("Int01".to_owned(), "Size".to_owned())].into());
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(attributes.resolve(name).map(|found| found.name).as_deref(), expected, "{name}");
        };
        check("Size", Some("Size"));
        check("Int01", None);
        check("WorkflowId", Some("WorkflowId"));
        check("workflowid", None);
        check("TemporalWorkflowType", Some("WorkflowType"));
        check("SchedulePaused", Some("TemporalSchedulePaused"));
        check("ScheduleId", Some("WorkflowId"));
        check("TemporalScheduleId", Some("WorkflowId"));
        check("ActivityId", None);
        let of_activities = attributes.clone().of_activities();
        assert_eq!(of_activities.resolve("ActivityType").map(|found| found.name).as_deref(), Some("WorkflowType"));
        check("Endpoint", None);
        let of_operations = attributes.clone().of_nexus_operations();
        let named = |name: &str| of_operations.resolve(name).map(|found| found.name);
        assert_eq!(named("Operation").as_deref(), Some("WorkflowType"));
        assert_eq!(named("Endpoint").as_deref(), Some(nexus::ENDPOINT_ATTRIBUTE));
        assert_eq!(of_operations.kind(nexus::ENDPOINT_ATTRIBUTE), Some(Keyword));
        assert_eq!(attributes.kind(nexus::ENDPOINT_ATTRIBUTE), None);
    }
}
