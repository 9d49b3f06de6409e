//! The search attributes that every namespace has, and which of them a client may set.

use perdure_proto::{
    Error,
    temporal::api::{
        common::v1::SearchAttributes,
        enums::v1::IndexedValueType::{self, Bool, Datetime, Int, Keyword, KeywordList},
    },
};
use prost::Message;

const MOST_KEYS: usize = 100;
const LARGEST_VALUE_BYTES: usize = 2 << 10;
const LARGEST_TOTAL_BYTES: usize = 40 << 10;

/// Who sets a system search attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SetBy {
    Server,
    Anyone,
}

/// The system search attributes, by name.
const SYSTEM: [(&str, IndexedValueType, SetBy); 33] = [
    ("BatcherNamespace", Keyword, SetBy::Anyone),
    ("BatcherUser", Keyword, SetBy::Anyone),
    ("BinaryChecksums", KeywordList, SetBy::Anyone),
    ("BuildIds", KeywordList, SetBy::Anyone),
    ("CloseTime", Datetime, SetBy::Server),
    ("ExecutionDuration", Int, SetBy::Server),
    ("ExecutionStatus", Keyword, SetBy::Server),
    ("ExecutionTime", Datetime, SetBy::Server),
    ("HistoryLength", Int, SetBy::Server),
    ("HistorySizeBytes", Int, SetBy::Server),
    ("ParentRunId", Keyword, SetBy::Server),
    ("ParentWorkflowId", Keyword, SetBy::Server),
    ("RootRunId", Keyword, SetBy::Server),
    ("RootWorkflowId", Keyword, SetBy::Server),
    ("RunId", Keyword, SetBy::Server),
    ("StartTime", Datetime, SetBy::Server),
    ("StateTransitionCount", Int, SetBy::Server),
    ("TaskQueue", Keyword, SetBy::Server),
    ("TemporalChangeVersion", KeywordList, SetBy::Anyone),
    ("TemporalExternalPayloadCount", Int, SetBy::Server),
    ("TemporalExternalPayloadSizeBytes", Int, SetBy::Server),
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
    ("WorkflowId", Keyword, SetBy::Server),
    ("WorkflowType", Keyword, SetBy::Server),
];

/// Names and types of the system search attributes.
pub(crate) fn system() -> impl Iterator<Item = (&'static str, IndexedValueType)> {
    SYSTEM.iter().map(|(name, kind, _)| (*name, *kind))
}

/// Checks the search attributes of a start.
pub(crate) fn validate(attributes: Option<&SearchAttributes>) -> Result<(), Error> {
    let Some(attributes) = attributes else { return Ok(()) };
    let count = attributes.indexed_fields.len();
    if count > MOST_KEYS {
        return Err(Error::invalid_argument(format!("number of search attributes {count} exceeds limit {MOST_KEYS}")));
    }
    // In the order of their names: the same request always gets the same answer.
    let mut names: Vec<&String> = attributes.indexed_fields.keys().collect();
    names.sort();
    for name in names {
        if SYSTEM.iter().any(|(system, _, set_by)| system == name && *set_by == SetBy::Server) {
            return Err(Error::invalid_argument(format!("{name} attribute can't be set in SearchAttributes")));
        }
        let bytes = attributes.indexed_fields.get(name).map_or(0, |payload| payload.data.len());
        if bytes > LARGEST_VALUE_BYTES {
            return Err(Error::invalid_argument(format!(
                "search attribute {name} value size {bytes} exceeds size limit {LARGEST_VALUE_BYTES}"
            )));
        }
    }
    let bytes = attributes.encoded_len();
    if bytes > LARGEST_TOTAL_BYTES {
        return Err(Error::invalid_argument(format!(
            "total size of search attributes {bytes} exceeds size limit {LARGEST_TOTAL_BYTES}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::common::v1::Payload;

    use super::*;

    fn attributes(fields: &[(&str, usize)]) -> SearchAttributes {
        let field = |(name, bytes): &(&str, usize)| {
            ((*name).to_owned(), Payload { data: vec![b'x'; *bytes].into(), ..Default::default() })
        };
        SearchAttributes { indexed_fields: fields.iter().map(field).collect() }
    }

    #[test]
    fn rules() {
        let check = |fields: &[(&str, usize)], expect: Result<(), &str>| {
            assert_eq!(
                validate(Some(&attributes(fields))).map_err(|e| e.message),
                expect.map_err(str::to_owned),
                "{fields:?}"
            );
        };
        check(&[], Ok(()));
        check(&[("CustomerId", 10), ("BuildIds", 5)], Ok(()));
        check(&[("WorkflowId", 1)], Err("WorkflowId attribute can't be set in SearchAttributes"));
        check(&[("Note", 2049)], Err("search attribute Note value size 2049 exceeds size limit 2048"));
    }

    #[test]
    fn names_are_sorted_and_once() {
        assert!(SYSTEM.windows(2).all(|w| w[0].0 < w[1].0));
    }
}
