//! A connected driver session: sends statements, counts them, says what their failures mean.

use std::{sync::Arc, time::Instant};

use scylla::{
    client::session::Session,
    response::{
        PagingState, PagingStateResponse,
        query_result::{QueryResult, QueryRowsResult},
    },
    serialize::row::SerializeRow,
    statement::{
        Statement,
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
    value::{CqlValue, Row},
};

use super::{
    domain::Domain,
    errors,
    telemetry::{Counters, Request},
};
use crate::{Result, StoreError};

/// What the answer of a conditional write says.
#[derive(Debug)]
pub(super) enum Decision {
    Applied,
    /// The columns that the row has instead; `None`: there is no such row.
    Rejected(Option<Columns>),
}

/// A row by the names of its columns.
#[derive(Debug)]
pub(super) struct Columns(Vec<(String, Option<CqlValue>)>);

impl Columns {
    pub fn get(&self, name: &str) -> Result<&CqlValue> {
        let column = self.0.iter().find(|(column, _)| column == name);
        column
            .and_then(|(_, value)| value.as_ref())
            .ok_or_else(|| StoreError::Corrupt(format!("column {name} is not set")))
    }

    pub fn bigint(&self, name: &str) -> Result<i64> {
        self.get(name)?.as_bigint().ok_or_else(|| StoreError::Corrupt(format!("column {name} is no bigint")))
    }

    pub fn int(&self, name: &str) -> Result<i32> {
        self.get(name)?.as_int().ok_or_else(|| StoreError::Corrupt(format!("column {name} is no int")))
    }

    pub fn tinyint(&self, name: &str) -> Result<i8> {
        self.get(name)?.as_tinyint().ok_or_else(|| StoreError::Corrupt(format!("column {name} is no tinyint")))
    }

    pub fn uuid(&self, name: &str) -> Result<uuid::Uuid> {
        self.get(name)?.as_uuid().ok_or_else(|| StoreError::Corrupt(format!("column {name} is no uuid")))
    }

    pub fn text(&self, name: &str) -> Result<&str> {
        self.get(name)?
            .as_text()
            .map(String::as_str)
            .ok_or_else(|| StoreError::Corrupt(format!("column {name} is no text")))
    }

    pub fn blob(&self, name: &str) -> Result<&[u8]> {
        self.get(name)?
            .as_blob()
            .map(Vec::as_slice)
            .ok_or_else(|| StoreError::Corrupt(format!("column {name} is no blob")))
    }
}

#[derive(Debug)]
pub(super) struct Cql {
    pub session: Session,
    pub domain: Domain,
    pub keyspace: String,
    pub counters: Arc<Counters>,
}

impl Cql {
    fn text(&self, cql: &str) -> Statement {
        let mut statement = Statement::new(cql.replace("{ks}", &format!("\"{}\"", self.keyspace)));
        statement.set_consistency(self.domain.plain);
        statement.set_serial_consistency(Some(self.domain.serial));
        statement
    }

    /// A plain statement of ours: QUORUM (G1) and idempotent.
    pub async fn prepare(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.text(cql);
        statement.set_is_idempotent(true);
        self.prepared(statement).await
    }

    /// A plain read whose rows are small and come by the page.
    pub async fn prepare_paged(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.prepare(cql).await?;
        statement.set_page_size(256);
        Ok(statement)
    }

    /// A conditional write: SERIAL, its commit QUORUM (G1); the driver never repeats it (G3).
    pub async fn prepare_conditional(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.text(cql);
        statement.set_is_idempotent(false);
        self.prepared(statement).await
    }

    /// A read that settles conditional writes under way (G3).
    pub async fn prepare_serial_read(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.text(cql);
        statement.set_consistency(self.domain.serial_read);
        statement.set_is_idempotent(true);
        self.prepared(statement).await
    }

    async fn prepared(&self, statement: Statement) -> Result<PreparedStatement> {
        let text = statement.contents.clone();
        let failed =
            |error: scylla::errors::PrepareError| StoreError::Unavailable(format!("cannot prepare {text}: {error}"));
        self.session.prepare(statement).await.map_err(failed)
    }

    async fn timed(
        &self,
        request: Request,
        answer: impl Future<Output = Result<QueryResult, scylla::errors::ExecutionError>>,
    ) -> Result<QueryResult, scylla::errors::ExecutionError> {
        let started = Instant::now();
        self.counters.sent(request);
        let result = answer.await;
        self.counters.answered(request, started.elapsed(), result.is_ok());
        result
    }

    pub async fn write(
        &self,
        request: Request,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<()> {
        let answer = self.timed(request, self.session.execute_unpaged(statement, values)).await;
        answer.map(drop).map_err(errors::plain)
    }

    /// All rows of a read that is bounded by its own text.
    pub async fn read(
        &self,
        request: Request,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryRowsResult> {
        let answer = self.timed(request, self.session.execute_unpaged(statement, values)).await;
        rows(answer.map_err(errors::plain)?)
    }

    pub async fn read_page(
        &self,
        request: Request,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        state: PagingState,
    ) -> Result<(QueryRowsResult, PagingStateResponse)> {
        let started = Instant::now();
        self.counters.sent(request);
        let result = self.session.execute_single_page(statement, values, state).await;
        self.counters.answered(request, started.elapsed(), result.is_ok());
        let (page, state) = result.map_err(errors::plain)?;
        Ok((rows(page)?, state))
    }

    /// All rows, page by page; for tables that are small by nature.
    pub async fn read_all<T, R>(
        &self,
        request: Request,
        statement: &PreparedStatement,
        values: impl SerializeRow + Clone,
        mut convert: impl FnMut(R) -> Result<T>,
    ) -> Result<Vec<T>>
    where
        R: for<'f> scylla::deserialize::row::DeserializeRow<'f, 'f>,
    {
        let mut state = PagingState::start();
        let mut all = Vec::new();
        loop {
            let (page, next) = self.read_page(request, statement, values.clone(), state).await?;
            for row in page.rows::<R>().map_err(|e| errors::corrupt("row type", e))? {
                all.push(convert(row.map_err(|e| errors::corrupt("row", e))?)?);
            }
            match next.into_paging_control_flow() {
                std::ops::ControlFlow::Break(()) => return Ok(all),
                std::ops::ControlFlow::Continue(next) => state = next,
            }
        }
    }

    /// Rows of one partition as one mutation. `writes` are of one statement each.
    pub async fn write_partition<V: SerializeRow>(
        &self,
        request: Request,
        statement: &PreparedStatement,
        writes: Vec<V>,
    ) -> Result<()> {
        if let [write] = &writes[..] {
            return self.write(request, statement, write).await;
        }
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_consistency(self.domain.plain);
        batch.set_is_idempotent(true);
        for _ in &writes {
            batch.append_statement(statement.clone());
        }
        let answer = self.timed(request, self.session.batch(&batch, writes)).await;
        answer.map(drop).map_err(errors::plain)
    }

    /// Sends a conditional write. An error leaves its outcome unknown (G3).
    pub async fn decide(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<Decision> {
        let request = Request::ConditionalWrite;
        let answer = self.timed(request, self.session.execute_unpaged(statement, values)).await;
        decision(rows(answer.map_err(errors::conditional)?)?)
    }
}

fn rows(result: QueryResult) -> Result<QueryRowsResult> {
    result.into_rows_result().map_err(|error| errors::corrupt("answer without rows", error))
}

/// The answer has `[applied]`, and if that is false, the columns of the row that there is.
pub(super) fn decision(result: QueryRowsResult) -> Result<Decision> {
    let names: Vec<String> = result.column_specs().iter().map(|spec| spec.name().to_owned()).collect();
    let row: Row = result.first_row().map_err(|error| errors::corrupt("answer to a conditional write", error))?;
    let mut columns = names.into_iter().zip(row.columns);
    let Some((_, Some(CqlValue::Boolean(applied)))) = columns.next() else {
        return Err(StoreError::Corrupt("answer to a conditional write does not say whether it applied".into()));
    };
    if applied {
        return Ok(Decision::Applied);
    }
    let columns: Vec<_> = columns.collect();
    let exists = columns.iter().any(|(_, value)| value.is_some());
    Ok(Decision::Rejected(exists.then_some(Columns(columns))))
}
