//! Session logs: a segment is a partition.

use bytes::Bytes;
use perdure_types::{Seq, SessionId};

use super::{CassandraStore, codec::log_checksum, errors, telemetry::Request};
use crate::{LogRow, Result, StoreError};

/// Bytes of one read. A read repair may have to write as much in one mutation, and Cassandra refuses those of half a
/// commit-log segment (16 MiB): so stay well below (F2).
const PAGE_BYTES: usize = 4 << 20;

impl CassandraStore {
    pub(super) async fn append_row(&self, session: SessionId, row: LogRow) -> Result<()> {
        let checksum = log_checksum(row.seq, row.acknowledged, &row.batch);
        let (seq, acknowledged) = (row.seq.0 as i64, row.acknowledged.0 as i64);
        let bytes = i32::try_from(row.batch.len())
            .map_err(|_| StoreError::ReadOnly(format!("a log row of {} bytes is too large", row.batch.len())))?;
        let values = (session.0, row.segment as i32, seq, acknowledged, bytes, checksum, row.batch);
        self.cql.write(Request::Append, &self.statements.append, values).await
    }

    /// Reads the sizes of the rows first, so that a page is bounded by bytes whatever the rows are like.
    pub(super) async fn log_rows(
        &self,
        session: SessionId,
        segment: u32,
        mut from: Seq,
        max_bytes: usize,
    ) -> Result<Vec<LogRow>> {
        let mut rows: Vec<LogRow> = Vec::new();
        let mut total = 0_usize;
        loop {
            let sizes = self.log_sizes(session, segment, from).await?;
            if sizes.is_empty() {
                return Ok(rows);
            }
            let mut sizes = sizes.into_iter().peekable();
            while let Some((first, bytes)) = sizes.next() {
                total = total.saturating_add(bytes);
                if !rows.is_empty() && total > max_bytes {
                    return Ok(rows);
                }
                let (mut last, mut page) = (first, bytes);
                while let Some((seq, bytes)) =
                    sizes.next_if(|(_, bytes)| page + bytes <= PAGE_BYTES && total.saturating_add(*bytes) <= max_bytes)
                {
                    (last, page, total) = (seq, page + bytes, total.saturating_add(bytes));
                }
                rows.extend(self.log_page(session, segment, first, last).await?);
                from = last.next();
            }
        }
    }

    async fn log_sizes(&self, session: SessionId, segment: u32, from: Seq) -> Result<Vec<(Seq, usize)>> {
        let from = i64::try_from(from.0).unwrap_or(i64::MAX);
        let values = (session.0, segment as i32, from);
        let page = self.cql.read(Request::ReadLog, &self.statements.size_log, values).await?;
        let rows = page.rows::<(i64, Option<i32>)>().map_err(|e| errors::corrupt("log row sizes", e))?;
        rows.map(|row| {
            let (seq, bytes) = row.map_err(|e| errors::corrupt("log row sizes", e))?;
            Ok((Seq(seq as u64), bytes.unwrap_or(0).max(0) as usize))
        })
        .collect()
    }

    async fn log_page(&self, session: SessionId, segment: u32, first: Seq, last: Seq) -> Result<Vec<LogRow>> {
        let values = (session.0, segment as i32, first.0 as i64, last.0 as i64);
        let page = self.cql.read(Request::ReadLog, &self.statements.read_log, values).await?;
        let rows = page.rows::<(i64, i64, i32, Bytes)>().map_err(|e| errors::corrupt("log rows", e))?;
        rows.map(|row| {
            let (seq, acknowledged, checksum, batch) = row.map_err(|e| errors::corrupt("log row", e))?;
            let (seq, acknowledged) = (Seq(seq as u64), Seq(acknowledged as u64));
            if log_checksum(seq, acknowledged, &batch) != checksum {
                return Err(StoreError::Corrupt(format!("row {} of the log of session {session} is damaged", seq.0)));
            }
            // Not a slice of the page: the row may be kept for long.
            Ok(LogRow { segment, seq, acknowledged, batch: Bytes::copy_from_slice(&batch) })
        })
        .collect()
    }

    /// M3: one tombstone for the partition; its timestamp covers every insert, early or late.
    pub(super) async fn drop_segment(&self, session: SessionId, segment: u32) -> Result<()> {
        let values = (session.0, segment as i32);
        self.cql.write(Request::DeleteSegment, &self.statements.delete_segment, values).await
    }
}
