//! A query that makes sense: its names are attributes of the namespace, its values fit them. And whether a row fits it.

use std::{cmp::Ordering, fmt};

use perdure_proto::temporal::api::enums::v1::WorkflowExecutionStatus;
use perdure_types::Timestamp;

use crate::{
    attributes::{Attribute, Attributes, DIVISION, Kind, kind_name},
    duration,
    row::{Row, status_by_name},
    syntax::{self, Direction, Expr, Literal, Operator, SyntaxError},
    value::{Value, parse_time, words},
};

/// What is wrong with a query, in Temporal's words. Clients see it as INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError(pub String);

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid query: {}", self.0)
    }
}

impl std::error::Error for QueryError {}

impl QueryError {
    fn unsupported(what: impl fmt::Display) -> Self {
        Self(format!("operation is not supported: {what}"))
    }

    fn invalid(what: impl fmt::Display) -> Self {
        Self(format!("invalid expression: {what}"))
    }

    /// Temporal counts from the beginning of the statement that it makes of the query.
    fn malformed(error: &SyntaxError, query: &str) -> Self {
        let lower = query.to_lowercase();
        let is_clause = lower.starts_with("order by") || lower.starts_with("group by");
        let before = if is_clause { "select * from table1 " } else { "select * from table1 where " };
        let position = before.len() + error.position + 1;
        let near = if error.near.is_empty() { String::new() } else { format!(" near '{}'", error.near) };
        Self(format!("malformed SQL query: syntax error at position {position}{near}"))
    }
}

/// A checked query.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    pub(crate) filter: Option<Filter>,
    pub(crate) group_by: Option<Attribute>,
    pub(crate) order_by: Vec<(Attribute, Direction)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
    Not(Box<Filter>),
    Test(Attribute, Test),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    Compare(Comparison, Value),
    OneOf(Vec<Value>),
    NoneOf(Vec<Value>),
    Prefix {
        negated: bool,
        prefix: String,
    },
    Between {
        negated: bool,
        from: Value,
        to: Value,
    },
    Null {
        negated: bool,
    },
    /// The text has one of these phrases, each a row of words.
    Phrases {
        negated: bool,
        phrases: Vec<Vec<String>>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// The value of an attribute of a record that is no run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    Absent,
    Text(String),
    Time(Timestamp),
}

impl Query {
    /// Reads a query of a list. Unless it names divisions itself, it asks for what is in none.
    pub fn parse(text: &str, attributes: &Attributes) -> Result<Self, QueryError> {
        let text = text.trim();
        let statement = syntax::parse(text).map_err(|error| QueryError::malformed(&error, text))?;
        if statement.has_limit {
            return Err(QueryError::unsupported("'LIMIT' clause"));
        }
        let mut check = Checker { attributes, names_division: false };
        let filter = statement.filter.as_ref().map(|filter| check.filter(filter)).transpose()?;
        if statement.group_by.len() > 1 {
            return Err(QueryError::unsupported("'GROUP BY' clause supports only a single field"));
        }
        let group_by = statement.group_by.first().map(|name| check.group_by(name)).transpose()?;
        let order_by = statement.order_by.iter().map(|(name, direction)| Ok((check.order_by(name)?, *direction)));
        let order_by = order_by.collect::<Result<Vec<_>, QueryError>>()?;
        let filter =
            if check.names_division || !attributes.are_of_runs() { filter } else { Some(without_division(filter)) };
        Ok(Self { filter, group_by, order_by })
    }

    /// Lists take no GROUP BY.
    pub fn check_list(&self) -> Result<(), QueryError> {
        match self.group_by {
            Some(_) => Err(QueryError::unsupported("'GROUP BY' clause")),
            None => Ok(()),
        }
    }

    /// Whether a record that is no run satisfies the query: `field_of` gives the value of each attribute.
    pub fn admits_record(&self, field_of: impl Fn(&str) -> Field) -> bool {
        let value_of = |attribute: &Attribute| match field_of(&attribute.name) {
            Field::Absent => Value::Null,
            Field::Text(text) => Value::Text(text),
            Field::Time(time) => Value::micros(time.0),
        };
        self.filter.as_ref().is_none_or(|filter| filter.holds(&value_of) == Some(true))
    }

    pub(crate) fn admits(&self, row: &Row) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.holds(&|attribute| row.value(attribute)) == Some(true))
    }
}

fn without_division(filter: Option<Filter>) -> Filter {
    let division = Attribute { name: DIVISION.to_owned(), kind: Kind::Keyword, of_row: false };
    let outside = Filter::Test(division, Test::Null { negated: false });
    match filter {
        Some(filter) => Filter::And(Box::new(outside), Box::new(filter)),
        None => outside,
    }
}

impl Filter {
    /// SQL's logic of three values: nothing is known of a value that is not there.
    pub fn holds(&self, value_of: &impl Fn(&Attribute) -> Value) -> Option<bool> {
        match self {
            Self::And(a, b) => match (a.holds(value_of), b.holds(value_of)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Self::Or(a, b) => match (a.holds(value_of), b.holds(value_of)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Self::Not(a) => a.holds(value_of).map(|holds| !holds),
            Self::Test(attribute, test) => test.holds(attribute.kind, &value_of(attribute)),
        }
    }

    /// Whether it asks for attributes only that `known` has.
    pub fn asks_only(&self, known: &impl Fn(&Attribute) -> bool) -> bool {
        match self {
            Self::And(a, b) | Self::Or(a, b) => a.asks_only(known) && b.asks_only(known),
            Self::Not(a) => a.asks_only(known),
            Self::Test(attribute, _) => known(attribute),
        }
    }
}

impl Test {
    fn holds(&self, kind: Kind, value: &Value) -> Option<bool> {
        // Whoever asks for rows without a certain word or entry means those too that have none at all.
        let of_sets = matches!(kind, Kind::KeywordList | Kind::Text);
        let unknown = *value == Value::Null && !of_sets;
        let any = |holds: &dyn Fn(&Value) -> bool| value.each().iter().any(holds);
        let holds = match self {
            Self::Null { negated } => return Some((*value == Value::Null) != *negated),
            _ if unknown => return None,
            Self::Compare(Comparison::NotEqual, wanted) => !any(&|v| v.compare(wanted).is_some_and(Ordering::is_eq)),
            Self::Compare(comparison, wanted) => any(&|v| v.compare(wanted).is_some_and(|o| comparison.holds(o))),
            Self::OneOf(wanted) => any(&|v| wanted.iter().any(|w| v.compare(w).is_some_and(Ordering::is_eq))),
            Self::NoneOf(wanted) => !any(&|v| wanted.iter().any(|w| v.compare(w).is_some_and(Ordering::is_eq))),
            Self::Prefix { negated, prefix } => {
                any(&|v| matches!(v, Value::Text(text) if text.starts_with(prefix.as_str()))) != *negated
            }
            Self::Between { negated, from, to } => {
                let within = |v: &Value| {
                    v.compare(from).is_some_and(Ordering::is_ge) && v.compare(to).is_some_and(Ordering::is_le)
                };
                any(&within) != *negated
            }
            Self::Phrases { negated, phrases } => {
                let has = |v: &Value| match v {
                    Value::Text(text) => {
                        let words = words(text);
                        phrases
                            .iter()
                            .any(|phrase| words.windows(phrase.len()).any(|window| window == phrase.as_slice()))
                    }
                    _ => false,
                };
                any(&has) != *negated
            }
        };
        Some(holds)
    }
}

struct Checker<'a> {
    attributes: &'a Attributes,
    names_division: bool,
}

impl Checker<'_> {
    fn attribute(&mut self, name: &str) -> Result<Attribute, QueryError> {
        let found = self
            .attributes
            .resolve(name)
            .ok_or_else(|| QueryError::invalid(format!("column name '{name}' is not a valid search attribute")))?;
        self.names_division |= found.name == DIVISION;
        Ok(found)
    }

    fn group_by(&mut self, name: &str) -> Result<Attribute, QueryError> {
        let attribute = self.attribute(name)?;
        if !["ExecutionStatus", DIVISION].contains(&attribute.name.as_str()) {
            let refusal = format!("'GROUP BY' clause is not supported for search attribute {name}");
            return Err(QueryError::unsupported(refusal));
        }
        Ok(attribute)
    }

    fn order_by(&mut self, name: &str) -> Result<Attribute, QueryError> {
        let attribute = self.attribute(name)?;
        if matches!(attribute.kind, Kind::Text | Kind::KeywordList) {
            let refusal = format!("unable to sort by search attribute type {}", kind_name(attribute.kind));
            return Err(QueryError::unsupported(refusal));
        }
        Ok(attribute)
    }

    fn filter(&mut self, expr: &Expr) -> Result<Filter, QueryError> {
        Ok(match expr {
            Expr::And(a, b) => Filter::And(Box::new(self.filter(a)?), Box::new(self.filter(b)?)),
            Expr::Or(a, b) => Filter::Or(Box::new(self.filter(a)?), Box::new(self.filter(b)?)),
            Expr::Not(a) => Filter::Not(Box::new(self.filter(a)?)),
            Expr::Name => return Err(QueryError::invalid("incomplete expression")),
            Expr::Function => return Err(QueryError::unsupported("function expression")),
            Expr::IsNull { name, negated } => Filter::Test(self.attribute(name)?, Test::Null { negated: *negated }),
            Expr::Between { name, negated, from, to } => {
                let attribute = self.attribute(name)?;
                if !matches!(attribute.kind, Kind::Datetime | Kind::Double | Kind::Int | Kind::Keyword) {
                    let kind = kind_name(attribute.kind);
                    let refusal = format!("cannot do range condition on search attribute '{name}' of type {kind}");
                    return Err(QueryError::invalid(refusal));
                }
                let (from, to) = (value(name, &attribute, from)?, value(name, &attribute, to)?);
                Filter::Test(attribute, Test::Between { negated: *negated, from, to })
            }
            Expr::Compare { name, operator, value } => {
                let attribute = self.attribute(name)?;
                let test = compare(name, &attribute, *operator, value)?;
                Filter::Test(attribute, test)
            }
        })
    }
}

fn compare(name: &str, attribute: &Attribute, operator: Operator, literal: &Literal) -> Result<Test, QueryError> {
    let values = match literal {
        Literal::List(literals) => literals.iter().map(|literal| value(name, attribute, literal)).collect(),
        one => value(name, attribute, one).map(|value| vec![value]),
    }?;
    let supported = match (attribute.kind, operator) {
        (_, Operator::Like | Operator::NotLike) => false,
        (_, Operator::Equal | Operator::NotEqual) => true,
        (Kind::Text, _) => false,
        (_, Operator::In | Operator::NotIn) => true,
        (Kind::KeywordList, _) => false,
        (kind, Operator::StartsWith | Operator::NotStartsWith) => kind == Kind::Keyword,
        (_, Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual) => true,
    };
    if !supported {
        let kind = kind_name(attribute.kind);
        let refusal = format!("operator '{operator}' not supported for {kind} type search attribute '{name}'");
        return Err(QueryError::unsupported(refusal));
    }
    let negated = matches!(operator, Operator::NotEqual | Operator::NotStartsWith);
    if matches!(operator, Operator::In | Operator::NotIn) {
        return Ok(if operator == Operator::In { Test::OneOf(values) } else { Test::NoneOf(values) });
    }
    let Some(value) = values.into_iter().next() else {
        return Err(QueryError::invalid("no value to compare with"));
    };
    let comparison = match operator {
        Operator::StartsWith | Operator::NotStartsWith => {
            let Value::Text(prefix) = value else {
                let refusal = format!("right-hand side of '{operator}' operator must be a literal string");
                return Err(QueryError::invalid(refusal));
            };
            return Ok(Test::Prefix { negated, prefix });
        }
        Operator::Equal => Comparison::Equal,
        Operator::Less => Comparison::Less,
        Operator::LessOrEqual => Comparison::LessOrEqual,
        Operator::Greater => Comparison::Greater,
        Operator::GreaterOrEqual => Comparison::GreaterOrEqual,
        Operator::NotEqual | Operator::In | Operator::NotIn | Operator::Like | Operator::NotLike => {
            Comparison::NotEqual
        }
    };
    if attribute.kind == Kind::Text {
        let Value::Text(text) = &value else { return Ok(Test::Phrases { negated, phrases: Vec::new() }) };
        if text.split(' ').all(str::is_empty) {
            return Err(QueryError::invalid("unexpected value for Text type search attribute (no tokens found)"));
        }
        let phrases = text.split(' ').map(words).filter(|phrase| !phrase.is_empty()).collect();
        return Ok(Test::Phrases { negated, phrases });
    }
    Ok(Test::Compare(comparison, value))
}

/// A literal as a value of the attribute.
fn value(name: &str, attribute: &Attribute, literal: &Literal) -> Result<Value, QueryError> {
    match literal {
        Literal::Name(right) => {
            let hint = format!("(did you forget to quote \"{right}\"?)");
            let refusal = format!("column name on the right side of comparison expression {hint}");
            return Err(QueryError::unsupported(refusal));
        }
        Literal::Null => return Err(QueryError::invalid("unexpected value type *sqlparser.NullVal")),
        Literal::List(_) => return Err(QueryError::invalid("unexpected value type sqlparser.ValTuple")),
        _ => {}
    }
    match attribute.name.as_str() {
        "ExecutionStatus" => return status(literal),
        "ExecutionDuration" => return duration_value(literal),
        _ => {}
    }
    let mismatch = || {
        let (value, go_type) = match literal {
            Literal::Text(text) => (format!("{text:?}"), "string"),
            Literal::Integer(number) => (number.to_string(), "int64"),
            Literal::Number(number) => (number.to_string(), "float64"),
            Literal::Bool(value) => (value.to_string(), "bool"),
            Literal::List(_) | Literal::Name(_) | Literal::Null => (String::new(), "nil"),
        };
        let kind = kind_name(attribute.kind);
        let what = format!("invalid value type for search attribute {name} of type {kind}: {value} (type: {go_type})");
        QueryError::invalid(what)
    };
    match (attribute.kind, literal) {
        (Kind::Int | Kind::Double, Literal::Integer(number)) => Ok(Value::Integer(*number)),
        (Kind::Int | Kind::Double, Literal::Number(number)) => Ok(Value::Number(*number)),
        (Kind::Bool, Literal::Bool(value)) => Ok(Value::Bool(*value)),
        (Kind::Datetime, Literal::Integer(nanos)) => Ok(Value::micros(*nanos)),
        (Kind::Datetime, Literal::Text(text)) => {
            let nanos = parse_time(text);
            nanos.map(Value::micros).ok_or_else(|| QueryError::invalid(format!("unable to parse datetime '{text}'")))
        }
        (Kind::Keyword | Kind::KeywordList | Kind::Text, Literal::Text(text)) => Ok(Value::Text(text.clone())),
        _ => Err(mismatch()),
    }
}

fn status(literal: &Literal) -> Result<Value, QueryError> {
    let found = match literal {
        Literal::Integer(number) => {
            i32::try_from(*number).ok().and_then(|number| WorkflowExecutionStatus::try_from(number).ok())
        }
        Literal::Text(name) => status_by_name(name),
        _ => return Err(unexpected("ExecutionStatus", literal)),
    };
    let shown = match literal {
        Literal::Text(name) => format!("'{name}'"),
        Literal::Integer(number) => number.to_string(),
        _ => String::new(),
    };
    let found = found.ok_or_else(|| QueryError::invalid(format!("invalid ExecutionStatus value {shown}")))?;
    Ok(Value::Integer(found as i64))
}

fn duration_value(literal: &Literal) -> Result<Value, QueryError> {
    match literal {
        Literal::Integer(nanos) => Ok(Value::Integer(*nanos)),
        Literal::Text(text) => duration::parse(text).map(Value::Integer).ok_or_else(|| {
            QueryError::invalid(format!("invalid duration value for search attribute ExecutionDuration: {text}"))
        }),
        _ => Err(unexpected("ExecutionDuration", literal)),
    }
}

fn unexpected(name: &str, literal: &Literal) -> QueryError {
    let go_type = if matches!(literal, Literal::Bool(_)) { "bool" } else { "float64" };
    QueryError::invalid(format!("unexpected value type {go_type} for search attribute {name}"))
}
