//! What only the embedded store promises: to be there after a crash, and to know damage when it sees it.

use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::future::join_all;
use perdure_persistence::{
    Cas, HeadRow, LogRow, SessionRow, SessionState, StampedWrite, Store, StoreError, TableWrite,
    embedded::{Config, Embedded, OpenError},
};
use perdure_types::{ChainKey, Epoch, Position, Seq, SessionId};
use tempfile::TempDir;
use uuid::Uuid;

const SESSION: SessionId = SessionId(Uuid::from_u128(42));
const HEADER_BYTES: u64 = 36;
const BATCH_BYTES: u64 = 100;
const FRAME_BYTES: u64 = HEADER_BYTES + BATCH_BYTES;

fn open(directory: &Path) -> Result<Embedded, OpenError> {
    Embedded::open(&Config::new(directory))
}

fn row(seq: u64) -> LogRow {
    let batch = Bytes::from(vec![seq as u8 ^ 0x5a; BATCH_BYTES as usize]);
    LogRow { segment: 0, seq: Seq(seq), acknowledged: Seq(0), batch }
}

fn rows(seqs: std::ops::RangeInclusive<u64>) -> Vec<LogRow> {
    seqs.map(row).collect()
}

async fn read(store: &Embedded) -> Result<Vec<LogRow>, StoreError> {
    store.read_log(SESSION, 0, Seq(0), usize::MAX).await
}

fn segment(directory: &Path) -> PathBuf {
    directory.join("log").join(SESSION.to_string()).join("0000000000.log")
}

/// A store with rows 1 to 5 in its log, each synced on its own, as a process that was killed leaves it.
async fn killed_after_five_rows() -> TempDir {
    let (directory, image) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let store = open(directory.path()).expect("opens");
    for row in rows(1..=5) {
        store.append(SESSION, row).await.expect("appended");
    }
    copy(directory.path(), image.path());
    image
}

/// What another process would find if the one that has `from` open were killed now.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("listed") {
        let path = entry.expect("entry").path();
        let target = to.join(path.file_name().expect("named"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copied");
        }
    }
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("opened");
    file.seek(SeekFrom::Start(at)).expect("sought");
    file.write_all(bytes).expect("written");
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_kill() {
    let (directory, image) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let store = open(directory.path()).expect("opens");
    let live = SessionRow { state: SessionState::Live, base: Seq(1), base_segment: 0 };
    assert_eq!(store.cas_session(SESSION, None, live.clone()).await.expect("known"), Cas::Applied);
    let chain = ChainKey::new("n", "w");
    let head = HeadRow { head: Bytes::from_static(b"head"), applied: Position::default() };
    let stamp = Position { epoch: Epoch(1), seq: Seq(1) };
    let write = TableWrite::PutHead { chain: chain.clone(), row: head.clone() };
    store.write(vec![StampedWrite { stamp, write }]).await.expect("written");
    join_all(rows(1..=50).into_iter().map(|row| store.append(SESSION, row))).await;
    copy(directory.path(), image.path());

    let reopened = open(image.path()).expect("opens after a kill");
    assert_eq!(reopened.read_session(SESSION).await.expect("read"), Some(live));
    assert_eq!(reopened.read_head(&chain).await.expect("read"), Some(head));
    assert_eq!(read(&reopened).await.expect("read"), rows(1..=50));
}

#[tokio::test]
async fn a_closed_store_opens_again_and_takes_no_space_ahead() {
    let directory = tempfile::tempdir().expect("temp");
    for round in 1..=3 {
        let store = open(directory.path()).expect("opens");
        store.append(SESSION, row(round)).await.expect("appended");
        drop(store);
        assert_eq!(fs::metadata(segment(directory.path())).expect("there").len(), round * FRAME_BYTES);
    }
    assert_eq!(read(&open(directory.path()).expect("opens")).await.expect("read"), rows(1..=3));
}

/// Cuts the last of five rows short: the first four are there, and the log can go on.
#[tokio::test]
async fn a_torn_tail_is_the_end_of_the_log() {
    let image = killed_after_five_rows().await;
    for kept in [0, 1, 4, 8, 35, 36, 37, 135] {
        let directory = tempfile::tempdir().expect("temp");
        copy(image.path(), directory.path());
        // A torn page: what was kept, then zeros, up to the space taken ahead.
        overwrite(&segment(directory.path()), 4 * FRAME_BYTES + kept, &vec![0; (FRAME_BYTES - kept) as usize]);
        let store = open(directory.path()).expect("opens");
        assert_eq!(read(&store).await.expect("read"), rows(1..=4), "{kept} bytes kept");
        store.append(SESSION, row(5)).await.expect("appended");
        store.append(SESSION, row(6)).await.expect("appended");
        assert_eq!(read(&store).await.expect("read"), rows(1..=6), "{kept} bytes kept");
    }
    let directory = tempfile::tempdir().expect("temp");
    copy(image.path(), directory.path());
    let file = OpenOptions::new().write(true).open(segment(directory.path())).expect("opened");
    file.set_len(4 * FRAME_BYTES + 20).expect("cut");
    assert_eq!(read(&open(directory.path()).expect("opens")).await.expect("read"), rows(1..=4));
}

#[tokio::test]
async fn garbage_after_the_last_row_is_void() {
    let image = killed_after_five_rows().await;
    overwrite(&segment(image.path()), 5 * FRAME_BYTES, &[0xff; 3000]);
    let store = open(image.path()).expect("opens");
    assert_eq!(read(&store).await.expect("read"), rows(1..=5));
    store.append(SESSION, row(6)).await.expect("appended");
    drop(store);
    assert_eq!(read(&open(image.path()).expect("opens")).await.expect("read"), rows(1..=6));
}

/// Any damaged byte of any row but the last is found, and no writer goes on behind it.
#[tokio::test]
async fn damage_before_a_later_row_is_corruption() {
    let image = killed_after_five_rows().await;
    for damaged in 0..4 {
        for byte in [0, 4, 8, 9, 11, 12, 20, 28, 36, 100, 135] {
            let directory = tempfile::tempdir().expect("temp");
            copy(image.path(), directory.path());
            let at = damaged * FRAME_BYTES + byte;
            let before = fs::read(segment(directory.path())).expect("read")[at as usize];
            overwrite(&segment(directory.path()), at, &[before ^ 0x10]);
            let store = open(directory.path()).expect("opens");
            let outcome = read(&store).await;
            assert!(matches!(outcome, Err(StoreError::Corrupt(_))), "row {damaged}, byte {byte}: {outcome:?}");
            let outcome = store.append(SESSION, row(6)).await;
            assert!(matches!(outcome, Err(StoreError::Corrupt(_))), "row {damaged}, byte {byte}: {outcome:?}");
        }
    }
}

/// Rows that one sync was to make durable may reach the disk in any order: none of them was acknowledged.
#[tokio::test]
async fn damage_within_the_last_group_is_a_torn_tail() {
    for _ in 0..100 {
        let directory = tempfile::tempdir().expect("temp");
        let store = open(directory.path()).expect("opens");
        let outcomes = join_all(rows(1..=40).into_iter().map(|row| store.append(SESSION, row))).await;
        assert!(outcomes.iter().all(Result::is_ok));
        drop(store);
        // Where the last group begins, from the header of the last row.
        let bytes = fs::read(segment(directory.path())).expect("read");
        let last = bytes.len() - FRAME_BYTES as usize;
        let group_start = u64::from_le_bytes(bytes[last + 28..last + 36].try_into().expect("eight bytes"));
        if group_start == last as u64 {
            // A group of one, by chance.
            continue;
        }
        overwrite(&segment(directory.path()), group_start + HEADER_BYTES, b"torn");
        let kept = rows(1..=group_start / FRAME_BYTES);
        assert_eq!(read(&open(directory.path()).expect("opens")).await.expect("read"), kept);
        return;
    }
    panic!("appends at once are never synced together");
}

#[tokio::test]
async fn a_missing_row_that_was_acknowledged_is_corruption() {
    let directory = tempfile::tempdir().expect("temp");
    let store = open(directory.path()).expect("opens");
    for seq in [1, 2, 4] {
        store.append(SESSION, row(seq)).await.expect("appended");
    }
    // Row 3 may just not have arrived.
    assert_eq!(read(&store).await.expect("read"), [row(1), row(2), row(4)]);
    store.append(SESSION, LogRow { acknowledged: Seq(3), ..row(5) }).await.expect("appended");
    assert!(matches!(read(&store).await, Err(StoreError::Corrupt(_))));
}

#[tokio::test]
async fn two_contents_of_one_row_are_corruption() {
    let directory = tempfile::tempdir().expect("temp");
    let store = open(directory.path()).expect("opens");
    store.append(SESSION, row(1)).await.expect("appended");
    store.append(SESSION, LogRow { batch: row(2).batch, ..row(1) }).await.expect("appended");
    assert!(matches!(read(&store).await, Err(StoreError::Corrupt(_))));
}

/// A file under the name of another segment is not taken for it.
#[tokio::test]
async fn a_frame_counts_only_in_its_own_segment() {
    let image = killed_after_five_rows().await;
    let stolen = segment(image.path()).with_file_name("0000000001.log");
    fs::rename(segment(image.path()), stolen).expect("renamed");
    let store = open(image.path()).expect("opens");
    assert_eq!(store.read_log(SESSION, 1, Seq(0), usize::MAX).await.expect("read"), []);
}

#[tokio::test]
async fn a_store_is_open_once() {
    let directory = tempfile::tempdir().expect("temp");
    let store = open(directory.path()).expect("opens");
    let error = open(directory.path()).expect_err("locked");
    assert!(matches!(&error, OpenError::Locked { pid: Some(pid), .. } if *pid == std::process::id()), "{error:?}");
    assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
    drop(store);
    open(directory.path()).expect("opens when it is free");
}

#[test]
fn what_is_wrong_with_a_directory_is_told_apart() {
    let fresh = || {
        let directory = tempfile::tempdir().expect("temp");
        drop(open(directory.path()).expect("opens"));
        directory
    };
    let newer = fresh();
    fs::write(newer.path().join("FORMAT"), "perdure-store 2\n").expect("written");
    assert!(matches!(open(newer.path()), Err(OpenError::NewerFormat { found: 2, .. })));

    let garbled = fresh();
    fs::write(garbled.path().join("FORMAT"), "something\n").expect("written");
    assert!(matches!(open(garbled.path()), Err(OpenError::Corrupt { .. })));

    let foreign = tempfile::tempdir().expect("temp");
    fs::write(foreign.path().join("letter.txt"), "dear").expect("written");
    assert!(matches!(open(foreign.path()), Err(OpenError::NotAStore { .. })));

    let under_a_file = foreign.path().join("letter.txt").join("store");
    assert!(matches!(open(&under_a_file), Err(OpenError::Io { .. })));

    let unfinished = tempfile::tempdir().expect("temp");
    fs::write(unfinished.path().join("FORMAT"), "perdure-store 1\n").expect("written");
    fs::write(unfinished.path().join("tables.new"), "half").expect("written");
    open(unfinished.path()).expect("a creation that was cut short begins again");
}

#[tokio::test]
async fn damaged_tables_are_told() {
    let image = killed_after_five_rows().await;
    let tables = image.path().join("tables.redb");
    let good = fs::read(&tables).expect("read");
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("cut", good[..good.len() / 3].to_vec()),
        ("text", b"not a database at all".repeat(1000)),
        ("zeros", vec![0; good.len()]),
    ] {
        fs::write(&tables, bytes).expect("written");
        let outcome = open(image.path());
        assert!(matches!(outcome, Err(OpenError::Corrupt { .. })), "{what}: {outcome:?}");
    }
    fs::remove_file(&tables).expect("removed");
    assert!(matches!(open(image.path()), Err(OpenError::Corrupt { .. })), "no tables, but a log");
}

/// A store that was stopped in good order may have no log left; without its tables it is still no new one.
#[test]
fn lost_tables_are_told_even_without_a_log() {
    let directory = tempfile::tempdir().expect("temp");
    drop(open(directory.path()).expect("opens"));
    fs::remove_file(directory.path().join("tables.redb")).expect("removed");
    let error = open(directory.path()).expect_err("refused");
    assert!(matches!(&error, OpenError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("tables.redb is missing"), "{error}");
    assert!(!directory.path().join("tables.redb").exists());
}

/// One made before the marker existed gets it when it is opened.
#[test]
fn an_older_store_is_marked() {
    let directory = tempfile::tempdir().expect("temp");
    drop(open(directory.path()).expect("opens"));
    fs::remove_file(directory.path().join("CREATED")).expect("removed");
    drop(open(directory.path()).expect("opens"));
    assert!(directory.path().join("CREATED").exists());
}

#[tokio::test]
async fn an_ephemeral_store_leaves_nothing() {
    let store = Embedded::ephemeral().expect("opens");
    store.append(SESSION, row(1)).await.expect("appended");
    let directory = store.directory().to_owned();
    assert!(segment(&directory).exists());
    drop(store);
    assert!(!directory.exists());
}
