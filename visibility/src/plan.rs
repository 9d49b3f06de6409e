//! Which rows to read for a filter: the narrowest index that it allows. (VI-1) A plan gives all rows that the filter
//! admits, and others too: every one is filtered.

use std::sync::Arc;

use perdure_types::{Hidden, IdMatch, Status, StatusSet, TimeRange, Timestamp, VisibilityIndex};

use crate::{
    attributes::{Attribute, DIVISION, Kind},
    query::{Comparison, Filter, Query, Test},
    value::{LONGEST_KEYWORD_BYTES, Value},
};

/// Ids that are looked up one by one at most.
const MOST_IDS: usize = 200;

/// Keywords of a row that no client sets: its parent, and its root if that is another one still.
pub(crate) const PARENT: &str = "ParentWorkflowId";
pub(crate) const ROOT: &str = "RootWorkflowId";

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub index: VisibilityIndex,
    pub open: TimeRange,
    pub closed: TimeRange,
    /// Better than the index if there are some, unless it turns out that they give very much.
    pub lookups: Vec<Lookup>,
}

/// Rows that are found without an index that has them in list order. All lookups of a plan together give what is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Lookup {
    Ids(IdMatch),
    /// The children of the runs of this workflow id.
    Children(Arc<str>),
    /// What descends from the runs of this workflow id, and these.
    Tree(Arc<str>),
    /// As above, of the workflow id that this run has.
    ChildrenOfRun(Arc<str>),
    TreeOfRun(Arc<str>),
}

pub(crate) fn plan(query: &Query) -> Plan {
    let mut conjuncts = Vec::new();
    if let Some(filter) = &query.filter {
        flatten(filter, &mut conjuncts);
    }
    let tests: Vec<(&Attribute, &Test)> = conjuncts
        .iter()
        .filter_map(|filter| match filter {
            Filter::Test(attribute, test) => Some((attribute, test)),
            Filter::And(..) | Filter::Or(..) | Filter::Not(_) => None,
        })
        .collect();
    let (open, closed) = query.filter.as_ref().map_or((TimeRange::ALL, TimeRange::ALL), times);
    let keyword = keyword(&tests);
    let lookups = lookups(&tests, keyword.is_some());
    let index = keyword.unwrap_or_else(|| {
        let statuses = query.filter.as_ref().map_or(StatusSet::ALL, statuses);
        let workflow_type = tests.iter().filter(|(attribute, _)| attribute.name == "WorkflowType");
        let workflow_type = workflow_type.filter_map(|(_, test)| equal_text(test)).next().map(Arc::from);
        let outside = |(attribute, test): &(&Attribute, &Test)| {
            attribute.name == DIVISION && **test == Test::Null { negated: false }
        };
        let hidden = if tests.iter().any(outside) { Hidden::Without } else { Hidden::With };
        VisibilityIndex::Status { workflow_type, statuses, hidden }
    });
    Plan { index, open, closed, lookups }
}

/// What must hold all together.
fn flatten<'a>(filter: &'a Filter, into: &mut Vec<&'a Filter>) {
    match filter {
        Filter::And(a, b) => {
            flatten(a, into);
            flatten(b, into);
        }
        other => into.push(other),
    }
}

fn equal_text(test: &Test) -> Option<&str> {
    match test {
        Test::Compare(Comparison::Equal, Value::Text(text)) => Some(text),
        Test::OneOf(values) => match values.as_slice() {
            [Value::Text(text)] => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn keyword(tests: &[(&Attribute, &Test)]) -> Option<VisibilityIndex> {
    let mut found = tests.iter().filter_map(|(attribute, test)| {
        let is_indexed = matches!(attribute.kind, Kind::Keyword | Kind::KeywordList)
            && (!attribute.of_row || attribute.name == PARENT);
        let value = equal_text(test).filter(|value| is_indexed && value.len() <= LONGEST_KEYWORD_BYTES)?;
        Some(VisibilityIndex::Keyword { name: attribute.name.as_str().into(), value: value.into() })
    });
    found.next()
}

/// Of the tests that lookups serve, the one that finds the least. What finds many is not better than a keyword's index.
fn lookups(tests: &[(&Attribute, &Test)], has_index: bool) -> Vec<Lookup> {
    let of =
        |name: &'static str| tests.iter().filter(move |(attribute, _)| attribute.name == name).map(|(_, test)| *test);
    let all = |name, lookup: fn(Arc<str>) -> Lookup| {
        of(name).find_map(texts).map(|ids| ids.into_iter().map(lookup).collect::<Vec<_>>())
    };
    let prefix = || {
        of("WorkflowId").find_map(|test| match test {
            Test::Prefix { negated: false, prefix } if !prefix.is_empty() => {
                Some(vec![Lookup::Ids(IdMatch::StartsWith(prefix.as_str().into()))])
            }
            _ => None,
        })
    };
    let by_id = all("RunId", |id| Lookup::Ids(IdMatch::Run(id)))
        .or_else(|| all("WorkflowId", |id| Lookup::Ids(IdMatch::Is(id))))
        .or_else(prefix);
    if by_id.is_some() || has_index {
        return by_id.unwrap_or_default();
    }
    all(PARENT, Lookup::Children)
        .or_else(|| all("ParentRunId", Lookup::ChildrenOfRun))
        .or_else(|| all(ROOT, Lookup::Tree))
        .or_else(|| all("RootRunId", Lookup::TreeOfRun))
        .unwrap_or_default()
}

/// The only values that pass the test, if it names them, each once.
fn texts(test: &Test) -> Option<Vec<Arc<str>>> {
    let values = match test {
        Test::Compare(Comparison::Equal, value) => std::slice::from_ref(value),
        Test::OneOf(values) if values.len() <= MOST_IDS => values,
        _ => return None,
    };
    let mut texts: Vec<Arc<str>> = Vec::new();
    for value in values {
        match value {
            Value::Text(text) if !texts.iter().any(|known| **known == **text) => texts.push(text.as_str().into()),
            _ => {}
        }
    }
    Some(texts)
}

/// Statuses that rows may have.
fn statuses(filter: &Filter) -> StatusSet {
    if filter.asks_only(&|attribute| attribute.name == "ExecutionStatus") {
        let admitted = |status: &Status| filter.holds(&|_| Value::Integer((*status).into())) == Some(true);
        return StatusSet::of((0..16).filter(admitted));
    }
    match filter {
        Filter::And(a, b) => statuses(a).intersection(statuses(b)),
        Filter::Or(a, b) => statuses(a).union(statuses(b)),
        Filter::Not(_) | Filter::Test(..) => StatusSet::ALL,
    }
}

/// When open rows may have started, and closed ones may have closed.
fn times(filter: &Filter) -> (TimeRange, TimeRange) {
    const EVERYTHING: (TimeRange, TimeRange) = (TimeRange::ALL, TimeRange::ALL);
    match filter {
        Filter::And(a, b) => {
            let ((open_a, closed_a), (open_b, closed_b)) = (times(a), times(b));
            (open_a.intersection(open_b), closed_a.intersection(closed_b))
        }
        Filter::Or(a, b) => {
            let ((open_a, closed_a), (open_b, closed_b)) = (times(a), times(b));
            (hull(open_a, open_b), hull(closed_a, closed_b))
        }
        Filter::Not(_) => EVERYTHING,
        Filter::Test(attribute, test) => match (attribute.name.as_str(), test) {
            ("CloseTime", Test::Null { negated: false }) => (TimeRange::ALL, TimeRange::NONE),
            ("CloseTime", _) => (TimeRange::NONE, range(test)),
            // A run closes after it has started.
            ("StartTime", _) => (range(test), TimeRange { from: range(test).from, ..TimeRange::ALL }),
            _ => EVERYTHING,
        },
    }
}

fn hull(a: TimeRange, b: TimeRange) -> TimeRange {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b,
        (_, true) => a,
        _ => TimeRange { from: a.from.min(b.from), until: a.until.max(b.until) },
    }
}

/// Times that pass the test; values are microseconds.
fn range(test: &Test) -> TimeRange {
    let first = |micros: i64| Timestamp(micros.saturating_mul(1000));
    let last = |micros: i64| Timestamp(micros.saturating_mul(1000).saturating_add(999));
    let all = TimeRange::ALL;
    match test {
        Test::Compare(comparison, Value::Micros(at)) => match comparison {
            Comparison::Equal => TimeRange { from: first(*at), until: last(*at) },
            Comparison::NotEqual => all,
            Comparison::Less | Comparison::LessOrEqual => TimeRange { until: last(*at), ..all },
            Comparison::Greater | Comparison::GreaterOrEqual => TimeRange { from: first(*at), ..all },
        },
        Test::Between { negated: false, from: Value::Micros(from), to: Value::Micros(to) } => {
            TimeRange { from: first(*from), until: last(*to) }
        }
        _ => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::Attributes;

    fn of(text: &str) -> Plan {
        let aliases = [("Keyword01".to_owned(), "Customer".to_owned()), ("Text01".to_owned(), "Note".to_owned())];
        plan(&Query::parse(text, &Attributes::from_aliases(&aliases.into())).expect("valid"))
    }

    fn by_status(workflow_type: Option<&str>, statuses: impl IntoIterator<Item = Status>) -> VisibilityIndex {
        VisibilityIndex::Status {
            workflow_type: workflow_type.map(Arc::from),
            statuses: StatusSet::of(statuses),
            hidden: Hidden::Without,
        }
    }

    #[test]
    fn indexes() {
        let check = |text, expected| assert_eq!(of(text).index, expected, "{text}");
        check("", by_status(None, 0..16));
        check("ExecutionStatus = 'Running'", by_status(None, [1]));
        check("WorkflowType = 'T' AND ExecutionStatus IN ('Failed', 'TimedOut')", by_status(Some("T"), [3, 7]));
        check("ExecutionStatus != 'Running'", by_status(None, (0..16).filter(|s| *s != 1)));
        check("NOT (ExecutionStatus = 1 OR ExecutionStatus = 2)", by_status(None, [0].into_iter().chain(3..16)));
        check("WorkflowType = 'A' OR WorkflowType = 'B'", by_status(None, 0..16));
        check("Note = 'x' OR ExecutionStatus = 'Failed'", by_status(None, 0..16));
        let customer = VisibilityIndex::Keyword { name: "Customer".into(), value: "c".into() };
        check("Customer = 'c' AND ExecutionStatus = 'Running'", customer.clone());
        check("Customer IN ('c')", customer);
        check("Customer = 'c' OR Note = 'x'", by_status(None, 0..16));
        check("Note = 'x'", by_status(None, 0..16));
        let hidden = of("TemporalNamespaceDivision = 'd' OR TemporalNamespaceDivision IS NULL").index;
        assert!(matches!(hidden, VisibilityIndex::Status { hidden: Hidden::With, .. }));
    }

    #[test]
    fn ids_are_looked_up() {
        let check = |text, expected: &[Lookup]| assert_eq!(of(text).lookups, expected, "{text}");
        let id = |id: &str| Lookup::Ids(IdMatch::Is(id.into()));
        check("WorkflowId = 'w' AND Note = 'x'", &[id("w")]);
        check("WorkflowId IN ('a', 'b', 'a')", &[id("a"), id("b")]);
        check("WorkflowId STARTS_WITH 'w'", &[Lookup::Ids(IdMatch::StartsWith("w".into()))]);
        check("WorkflowId = 'w' OR Note = 'x'", &[]);
        check("NOT WorkflowId = 'w'", &[]);
        check("WorkflowId = 'w' AND RunId = 'r'", &[Lookup::Ids(IdMatch::Run("r".into()))]);
        check("RootWorkflowId = 'w' AND RootRunId = 'r'", &[Lookup::Tree("w".into())]);
        check("RootRunId = 'r' AND Note = 'x'", &[Lookup::TreeOfRun("r".into())]);
        check("ParentRunId = 'r'", &[Lookup::ChildrenOfRun("r".into())]);
        check("ParentWorkflowId IN ('v', 'w')", &[Lookup::Children("v".into()), Lookup::Children("w".into())]);
        check("ParentWorkflowId = 'w' AND ParentRunId = 'r'", &[]);
        check("RootWorkflowId = 'w' AND Customer = 'c'", &[]);
    }

    #[test]
    fn ranges() {
        let second = Timestamp(1_000_000_000);
        let check = |text, open, closed| assert_eq!((of(text).open, of(text).closed), (open, closed), "{text}");
        let later = TimeRange { from: second, ..TimeRange::ALL };
        check("StartTime > '1970-01-01T00:00:01Z'", later, later);
        let earlier = TimeRange { until: Timestamp(1_000_000_999), ..TimeRange::ALL };
        check("StartTime <= '1970-01-01T00:00:01Z'", earlier, TimeRange::ALL);
        check("CloseTime >= '1970-01-01T00:00:01Z'", TimeRange::NONE, later);
        check("CloseTime IS NULL", TimeRange::ALL, TimeRange::NONE);
        check("CloseTime IS NOT NULL", TimeRange::NONE, TimeRange::ALL);
        check("CloseTime IS NULL OR CloseTime >= '1970-01-01T00:00:01Z'", TimeRange::ALL, later);
        check("NOT StartTime > '1970-01-01T00:00:01Z'", TimeRange::ALL, TimeRange::ALL);
    }
}
