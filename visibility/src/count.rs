//! Counts: from the counts that the store keeps, if the query asks for nothing but types and statuses; else by looking
//! at the rows.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use perdure_proto::{
    Error,
    temporal::api::{common::v1::Payload, enums::v1::WorkflowExecutionStatus},
};
use perdure_types::{Status, Timestamp};

use crate::{
    attributes::{DIVISION, Kind, kind_name},
    list::{Rows, Source, find},
    plan::plan,
    query::{Filter, Query, Test},
    row::{Row, status_name},
    value::Value,
};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Count {
    pub total: u64,
    /// By the value that the query groups by.
    pub groups: Vec<(Payload, u64)>,
    /// Rows had to be read.
    pub scanned: bool,
}

pub async fn count(rows: &dyn Rows, list_id: &Arc<str>, query: &Query) -> Result<Count, Error> {
    let mut tally = Tally::default();
    let group = query.group_by.as_ref();
    let is_status = group.is_none_or(|group| group.name == "ExecutionStatus");
    let kept = is_status && query.filter.as_ref().is_none_or(is_kept);
    if kept {
        for kind in rows.counts(list_id).await? {
            let value_of = |attribute: &crate::Attribute| match attribute.name.as_str() {
                "ExecutionStatus" => Value::Integer(kind.status.into()),
                "WorkflowType" => Value::Text(kind.workflow_type.to_string()),
                // Only whether there is one is asked for.
                _ if kind.hidden => Value::Text(String::new()),
                _ => Value::Null,
            };
            if query.filter.as_ref().is_none_or(|filter| filter.holds(&value_of) == Some(true)) {
                tally.add(Group::Status(kind.status), kind.count);
            }
        }
    } else {
        let plan = plan(query);
        let mut count = |run: &perdure_types::ListedRun| {
            if let Some(row) = Row::decode(run).filter(|row| query.admits(row)) {
                let group = match group.filter(|_| !is_status).map(|group| row.value(group)) {
                    Some(Value::Text(value)) => Group::Division(value),
                    Some(_) => Group::NoDivision,
                    None => Group::Status(run.row.status),
                };
                tally.add(group, 1);
            }
        };
        match find(rows, list_id, &plan).await? {
            Some(found) => found.iter().for_each(count),
            None => {
                let mut source = Source::new(rows, list_id, &plan, Timestamp::MAX);
                while let Some(run) = source.next().await? {
                    count(&run);
                }
            }
        }
    }
    let total = tally.0.values().sum();
    let groups = if group.is_some() { tally.groups() } else { Vec::new() };
    Ok(Count { total, groups, scanned: !kept })
}

/// Whether kept counts can answer it.
fn is_kept(filter: &Filter) -> bool {
    match filter {
        Filter::And(a, b) | Filter::Or(a, b) => is_kept(a) && is_kept(b),
        Filter::Not(a) => is_kept(a),
        Filter::Test(attribute, test) => match attribute.name.as_str() {
            "ExecutionStatus" | "WorkflowType" => true,
            DIVISION => matches!(test, Test::Null { .. }),
            _ => false,
        },
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Status(Status),
    NoDivision,
    Division(String),
}

#[derive(Default)]
struct Tally(BTreeMap<Group, u64>);

impl Tally {
    fn add(&mut self, group: Group, count: u64) {
        *self.0.entry(group).or_default() += count;
    }

    fn groups(self) -> Vec<(Payload, u64)> {
        self.0.into_iter().map(|(group, count)| (group.payload(), count)).collect()
    }
}

impl Group {
    fn payload(&self) -> Payload {
        let json = match self {
            Self::Status(status) => {
                let status = WorkflowExecutionStatus::try_from(i32::from(*status)).unwrap_or_default();
                Some(serde_json::Value::from(status_name(status)))
            }
            Self::Division(value) => Some(serde_json::Value::from(value.as_str())),
            Self::NoDivision => None,
        };
        let encoding = if json.is_some() { "json/plain" } else { "binary/null" };
        let metadata = [
            ("encoding".to_owned(), Bytes::from_static(encoding.as_bytes())),
            ("type".to_owned(), Bytes::from_static(kind_name(Kind::Keyword).as_bytes())),
        ];
        let data = json.map(|json| json.to_string().into_bytes().into()).unwrap_or_default();
        Payload { metadata: metadata.into(), data, ..Payload::default() }
    }
}
