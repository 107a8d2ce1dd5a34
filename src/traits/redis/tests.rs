//! The store thread's part, with reports and orders in the place of Redis.
use super::*;
use crate::config::Inputs;
use crate::engine::evaluate::TraitValue;
use crate::trait_table::{Changes, TraitWrite, WriteKind};
use crate::traits::accounts::AccountLimits;

/// More ticks than a comparison of the table takes.
const TICKS: usize = 40;

struct Fake {
    redis: TraitRedis,
    memory: TraitMemory,
    orders: Receiver<RedisOrder>,
    reports: SyncSender<RedisReport>,
}

fn id(milliseconds: u64) -> StreamId {
    StreamId { milliseconds, counter: 0 }
}

impl Fake {
    /// A process that has read these identities from Redis.
    fn with(identifiers: &[&str]) -> Self {
        let variables = [("TRAITS_STORE", "redis"), ("TRAITS_REDIS_URL", "redis://127.0.0.1:1")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let inputs = Inputs { without_file: true, may_serve_nothing: true, variables, ..Inputs::default() };
        let config = crate::config::load(&inputs).expect("valid").0;
        let log = Log::start_to(&config.logging, io::sink(), None).expect("a thread");
        let mut redis = TraitRedis::new(&config, Arc::new(Metrics::new(&[0])), log).expect("a URL");
        let (to_writer, orders) = sync_channel(IN_FLIGHT_MAX + 1);
        let (reports, from_reader) = sync_channel(100);
        (redis.orders, redis.reports) = (Some(to_writer), Some(from_reader));
        let limits = AccountLimits { identities_max: 1000, bytes_max: 1 << 20 };
        let mut memory = TraitMemory::new(1, limits, 7);
        memory.keeps_tombstones = true;
        let mut fake = Self { redis, memory, orders, reports };
        fake.reload(ReloadReason::Start, "one", 0, identifiers);
        assert!(fake.ticks().is_empty(), "Redis has everything");
        fake
    }

    fn report(&self, report: RedisReport) {
        self.reports.send(report).expect("the store reads it");
    }

    fn reload(&self, reason: ReloadReason, generation: &str, position: u64, identifiers: &[&str]) {
        let (generation, position) = (generation.to_owned(), id(position));
        self.report(RedisReport::Reload { reason, generation: generation.clone(), position });
        let entry = Entry {
            key: "n",
            value: Some(TraitValue::Int(60)),
            stamp: Stamp { clock: 5, proxy: 1 },
            born: 5,
        };
        let fields = || vec![("s".to_owned(), "1".to_owned()), ("=n".to_owned(), wire::value(&entry))];
        let hash = |identifier: &&str| StoredHash { name: wire::name("e", identifier), fields: fields() };
        self.report(RedisReport::Loaded(identifiers.iter().map(hash).collect()));
        self.report(RedisReport::Synced { generation, position });
    }

    /// Answers the oldest batch: its entry in the stream, and which identities were there.
    fn answer(&self, generation: &str, entry: u64, known: &str) {
        let (generation, id) = (generation.to_owned(), Some(id(entry)).filter(|_| entry > 0));
        self.report(RedisReport::Written { generation, id, known: known.to_owned() });
    }

    fn apply(&mut self, identifier: &str, kind: WriteKind, entries: &[u8]) {
        let write = TraitWrite::new("e".into(), kind, identifier, entries);
        self.memory.write(0, &write, SystemTime::now(), &mut |changes| self.redis.changed(changes));
    }

    fn add(&mut self, identifier: &str) {
        let mut changes = Changes::default();
        changes.push("n", Some(TraitValue::Int(1)));
        self.apply(identifier, WriteKind::Add, &changes.into_bytes());
    }

    /// Lets the store thread run; returns what it sends: identifiers with their fields, without stamps.
    fn ticks(&mut self) -> Vec<(String, Vec<String>)> {
        for _ in 0..TICKS {
            self.redis.tick(&mut self.memory, SystemTime::now(), false, &mut |_| {});
        }
        let field = |(key, value): &(String, String)| {
            let at = if key.starts_with('+') { 24 } else { 41 };
            format!("{key} {}", &value[at..])
        };
        let write = |write: &IdentityWrite| {
            (write.name[2..].to_owned(), write.fields.iter().map(field).collect::<Vec<_>>())
        };
        let batches = self.orders.try_iter().filter_map(|order| match order {
            RedisOrder::Write { batch, .. } => Some(batch.iter().map(write).collect::<Vec<_>>()),
            RedisOrder::Fetch(_) => None,
        });
        batches.flatten().collect()
    }

    fn has(&self, identifier: &str) -> bool {
        self.memory.table().find("e", identifier).is_some()
    }
}

fn sent(identifier: &str, fields: &[&str]) -> (String, Vec<String>) {
    (identifier.to_owned(), fields.iter().map(|field| (*field).to_owned()).collect())
}

#[test]
fn an_erased_identity_does_not_come_back_because_it_was_read_here() {
    let mut fake = Fake::with(&["jane", "joe", "ann"]);
    // While Redis is not available jane is read, and joe is written. Then all three are erased elsewhere.
    fake.apply("jane", WriteKind::Touch, &[]);
    assert_eq!(fake.ticks(), [sent("jane", &[])]);
    fake.add("joe");
    assert_eq!(fake.ticks(), [sent("joe", &["+n 1"])]);
    fake.answer("one", 0, "0");
    assert_eq!(fake.ticks(), [], "Redis does not have jane, who was only read");
    fake.reload(ReloadReason::Behind, "one", 9, &[]);
    fake.redis.tick(&mut fake.memory, SystemTime::now(), false, &mut |_| {});
    // Read while the table is compared.
    fake.apply("ann", WriteKind::Touch, &[]);
    fake.ticks();
    assert!(!fake.has("jane") && !fake.has("ann"), "what was only read is not protected");
    fake.answer("one", 0, "0");
    assert_eq!(fake.ticks(), [sent("joe", &["=n 60", "+n 1"])], "what was written is");
}

#[test]
fn an_increment_under_way_counts_once_when_redis_loses_its_data() {
    let mut fake = Fake::with(&["jane"]);
    fake.add("jane");
    fake.ticks();
    fake.answer("one", 3, "1");
    // This one is sent, but not answered; the one before is stored, but was not read.
    fake.add("jane");
    assert_eq!(fake.ticks(), [sent("jane", &["+n 1"])]);
    fake.reload(ReloadReason::Lost, "two", 0, &[]);
    // The value is that without both, and what was stored is added again.
    assert_eq!(fake.ticks(), [sent("jane", &["+n 1"]), sent("jane", &["=n 60"])]);
    for known in ["0", "0", "0"] {
        fake.answer("two", 0, known);
    }
    assert_eq!(fake.ticks(), [sent("jane", &["=n 60", "+n 2"])], "Redis did not have jane before");
    fake.answer("two", 5, "1");
    assert_eq!(fake.ticks(), []);
    // An answer of the data before.
    fake.add("jane");
    assert_eq!(fake.ticks(), [sent("jane", &["+n 1"])]);
    fake.reload(ReloadReason::Lost, "three", 0, &["jane"]);
    fake.answer("two", 6, "1");
    let total: Vec<String> = fake.ticks().into_iter().flat_map(|(_, fields)| fields).collect();
    let added: i64 = total.iter().filter_map(|field| field.strip_prefix("+n ")?.parse::<i64>().ok()).sum();
    assert_eq!(added, 3, "{total:?}");
}
