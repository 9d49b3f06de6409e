//! Nonsense of the right shape: messages by their descriptors, with values that are near to what a client would send.

use bytes::Bytes;
use perdure_proto::perdure::node::v1::task_token::Kind as TokenKind;
use prost::Message;
use prost_reflect::{
    Cardinality, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, MethodDescriptor,
    ReflectMessage, Value,
};

use crate::{Method, pool::Pool};

pub const NAMESPACE: &str = "fuzz";
const WORKFLOWS: u64 = 12;
const DEEPEST: u32 = 9;
/// Fields without which a request does not get far.
const WANTED: [&str; 23] = [
    "namespace",
    "workflow_id",
    "workflow_execution",
    "execution",
    "workflow_type",
    "activity_type",
    "task_queue",
    "name",
    "task_token",
    "commands",
    "request",
    "meta",
    "input",
    "query",
    "query_type",
    "signal_name",
    "update_ref",
    "timer_id",
    "activity_id",
    "attributes",
    "start_to_fire_timeout",
    "schedule_to_close_timeout",
    "operations",
];

pub fn workflow_ids() -> Vec<String> {
    (0..WORKFLOWS).map(|number| format!("w-{number}")).collect()
}

/// All that it makes follows from its seed, and from what the pool holds.
pub struct Generator<'a> {
    state: u64,
    pool: &'a Pool,
    /// How often a value is one that nobody would send, and how often an optional field is set. Differs by request: much
    /// nonsense is refused early, a little gets far.
    odd_percent: u64,
    optional_percent: u64,
    token_kind: TokenKind,
}

impl<'a> Generator<'a> {
    pub fn new(seed: u64, pool: &'a Pool) -> Self {
        let mut this =
            Self { state: seed, pool, odd_percent: 0, optional_percent: 0, token_kind: TokenKind::Unspecified };
        this.odd_percent = this.one_of(&[0, 0, 1, 4, 15]);
        this.optional_percent = this.one_of(&[2, 5, 15, 40]);
        this
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn is_odd(&mut self) -> bool {
        self.chance(self.odd_percent)
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        let index = self.below(values.len() as u64);
        values[index as usize]
    }

    pub fn pick_method<'m>(&mut self, methods: &'m [Method]) -> &'m Method {
        loop {
            let method = &methods[self.below(methods.len() as u64) as usize];
            let name = method.descriptor.name();
            let lively = ["Start", "Signal", "Respond", "Poll", "Multi"].iter().any(|part| name.contains(part));
            let percent = match (method.is_built, lively) {
                (false, _) => 2,
                (true, false) => 30,
                (true, true) => 100,
            };
            if self.chance(percent) {
                return method;
            }
        }
    }

    /// A request, and its bytes: now and then not quite those.
    pub fn request(&mut self, method: &MethodDescriptor) -> (DynamicMessage, Bytes) {
        self.token_kind = match method.name() {
            name if name.starts_with("RespondWorkflowTask") => TokenKind::Workflow,
            name if name.starts_with("RespondQuery") => TokenKind::Query,
            name if name.starts_with("RespondNexus") => TokenKind::Nexus,
            _ => TokenKind::Activity,
        };
        let mut request = self.message(&method.input(), 0);
        if method.name().contains("Namespace") {
            // The namespace of all the others stays as it is.
            let name = format!("scratch-{}", self.below(4));
            for field in ["namespace", "name"] {
                if request.get_field_by_name(field).is_some_and(|value| value.as_str() == Some(NAMESPACE)) {
                    request.set_field_by_name(field, Value::String(name.clone()));
                }
            }
        }
        let mut bytes = request.encode_to_vec();
        if self.chance(5) {
            bytes = self.damage(&bytes);
            // Damage must not name what must not be touched.
            if contains(&bytes, crate::control::NAMESPACE.as_bytes()) {
                bytes.clear();
            }
        }
        (request, bytes.into())
    }

    fn message(&mut self, descriptor: &MessageDescriptor, depth: u32) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        match descriptor.full_name() {
            "google.protobuf.Duration" | "google.protobuf.Timestamp" => return self.time(message),
            _ => {}
        }
        for field in descriptor.fields().filter(|field| field.containing_oneof().is_none()) {
            self.fill(&mut message, &field, depth);
        }
        for oneof in descriptor.oneofs() {
            let fields: Vec<_> = oneof.fields().collect();
            let field = &fields[self.below(fields.len() as u64) as usize];
            if self.chance(100 - self.odd_percent) && depth < DEEPEST {
                let value = self.value(field, depth);
                message.set_field(field, value);
                self.fit_command_type(&mut message, field);
            }
        }
        message
    }

    fn fill(&mut self, message: &mut DynamicMessage, field: &FieldDescriptor, depth: u32) {
        let percent = match WANTED.contains(&field.name()) {
            true => 100 - self.odd_percent,
            false if depth < 4 => self.optional_percent,
            false => self.optional_percent / 3,
        };
        let is_nested = matches!(field.kind(), Kind::Message(_));
        if !self.chance(percent) || (is_nested && depth >= DEEPEST) {
            return;
        }
        let value = if field.is_map() {
            self.map(field, depth)
        } else if field.cardinality() == Cardinality::Repeated {
            let length = self.one_of(&[0, 1, 1, 1, 2, 3]);
            let mut values: Vec<Value> = (0..length).map(|_| self.value(field, depth)).collect();
            if field.name() == "operations" && !self.is_odd() {
                values = self.start_and_update(field, depth);
            }
            Value::List(values)
        } else {
            self.value(field, depth)
        };
        message.set_field(field, value);
    }

    /// The one pair of operations that there is, on one workflow.
    fn start_and_update(&mut self, field: &FieldDescriptor, depth: u32) -> Vec<Value> {
        let Kind::Message(operation) = field.kind() else { unreachable!("operations are messages") };
        let mut values = Vec::new();
        let workflow_id = Value::String(self.string("workflow_id"));
        for name in ["start_workflow", "update_workflow"] {
            let field = operation.get_field_by_name(name).unwrap();
            let mut value = self.value(&field, depth + 1);
            let request = value.as_message_mut().unwrap();
            match request.get_field_by_name_mut("workflow_execution").and_then(Value::as_message_mut) {
                Some(execution) => execution.set_field_by_name("workflow_id", workflow_id.clone()),
                None => request.set_field_by_name("workflow_id", workflow_id.clone()),
            }
            let mut message = DynamicMessage::new(operation.clone());
            message.set_field(&field, value);
            values.push(Value::Message(message));
        }
        values
    }

    fn map(&mut self, field: &FieldDescriptor, depth: u32) -> Value {
        let Kind::Message(entry) = field.kind() else { unreachable!("a map's entries are messages") };
        let mut map = std::collections::HashMap::new();
        for _ in 0..self.below(3) {
            let value = self.value(&entry.map_entry_value_field(), depth);
            match entry.map_entry_key_field().kind() {
                Kind::String => drop(map.insert(MapKey::String(self.string("key")), value)),
                Kind::Int32 => drop(map.insert(MapKey::I32(self.integer() as i32), value)),
                Kind::Int64 => drop(map.insert(MapKey::I64(self.integer()), value)),
                _ => {}
            }
        }
        Value::Map(map)
    }

    fn value(&mut self, field: &FieldDescriptor, depth: u32) -> Value {
        match field.kind() {
            Kind::Double => Value::F64(self.float()),
            Kind::Float => Value::F32(self.float() as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.integer() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.integer()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.integer() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.integer() as u64),
            Kind::Bool => Value::Bool(self.chance(50)),
            Kind::String => Value::String(self.string(field.name())),
            Kind::Bytes => Value::Bytes(self.bytes(field.name())),
            Kind::Message(descriptor) => Value::Message(self.message(&descriptor, depth + 1)),
            Kind::Enum(descriptor) => Value::EnumNumber(self.enum_number(&descriptor)),
        }
    }

    fn integer(&mut self) -> i64 {
        let small = self.below(8) as i64;
        if !self.is_odd() {
            return small;
        }
        self.one_of(&[-1, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN, 1 << 40])
    }

    fn float(&mut self) -> f64 {
        if !self.is_odd() {
            return self.one_of(&[0.0, 1.0, 1.5, 2.0]);
        }
        self.one_of(&[-1.0, 0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE])
    }

    fn time(&mut self, mut message: DynamicMessage) -> DynamicMessage {
        let (mut seconds, mut nanos) = (self.one_of(&[0, 1, 5, 60, 3600]), self.one_of(&[0, 0, 1, 999_999_999]));
        if self.is_odd() {
            seconds = self.one_of(&[-1, 315_576_000_000, 315_576_000_001, i64::MAX, i64::MIN]);
            nanos = self.one_of(&[0, 1_000_000_000, -1, i32::MAX, i32::MIN]);
        }
        message.set_field_by_name("seconds", Value::I64(seconds));
        message.set_field_by_name("nanos", Value::I32(nanos));
        message
    }

    fn enum_number(&mut self, descriptor: &EnumDescriptor) -> i32 {
        let numbers: Vec<i32> = descriptor.values().map(|value| value.number()).collect();
        if self.is_odd() { self.one_of(&[-1, 99, i32::MAX, i32::MIN]) } else { self.one_of(&numbers) }
    }

    /// Mostly a command is of the type that its attributes are for.
    fn fit_command_type(&mut self, message: &mut DynamicMessage, attributes: &FieldDescriptor) {
        let Some(field) = message.descriptor().get_field_by_name("command_type") else {
            return;
        };
        let Kind::Enum(types) = field.kind() else { return };
        let name = attributes.name().trim_end_matches("_command_attributes").to_uppercase();
        if let (Some(value), true) = (types.get_value_by_name(&format!("COMMAND_TYPE_{name}")), !self.is_odd()) {
            message.set_field(&field, Value::EnumNumber(value.number()));
        }
    }

    fn string(&mut self, field: &str) -> String {
        let number = self.below(WORKFLOWS);
        let usual = match field {
            "namespace" => NAMESPACE.to_owned(),
            "workflow_id" => format!("w-{number}"),
            "run_id" | "first_execution_run_id" => {
                let index = self.next();
                if self.chance(60) { String::new() } else { self.pool.run_id(index).unwrap_or_default() }
            }
            "name" | "normal_name" => format!("name-{}", number % 3),
            _ => format!("{field}-{}", number % 4),
        };
        if !self.is_odd() {
            return usual;
        }
        let long = self.one_of(&[1_000, 1_001, 70_000]);
        match self.below(8) {
            0 => String::new(),
            1 => "x".repeat(long),
            2 => "\u{0}\u{1}\n".to_owned(),
            3 => "工作流 \u{202e} 🦀".to_owned(),
            4 => "/_sys/queue/1".to_owned(),
            5 => "not-a-uuid".to_owned(),
            6 => "00000000-0000-0000-0000-000000000000".to_owned(),
            _ => "* * * * *".to_owned(),
        }
    }

    fn bytes(&mut self, field: &str) -> Bytes {
        let index = self.next();
        let token = match field {
            "task_token" if self.chance(20) => return self.damaged_untouchable(index),
            "task_token" if self.chance(70) => self.pool.take_task_token(self.token_kind),
            "task_token" => self.pool.task_token(index),
            "next_page_token" => self.pool.page_token(index).filter(|_| index.is_multiple_of(2)),
            _ => Some(Bytes::from_static(b"{\"some\":\"data\"}")),
        };
        let token = token.unwrap_or_default();
        if self.chance(90) { token } else { self.damage(&token).into() }
    }

    fn damaged_untouchable(&mut self, index: u64) -> Bytes {
        let damaged = Bytes::from(self.damage(&self.pool.untouchable(index)));
        if self.pool.is_untouchable(&damaged) { Bytes::new() } else { damaged }
    }

    /// Bits flipped, a part cut off, something appended, or nothing of it left.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let length = bytes.len() as u64;
        match self.below(4) {
            0 if length > 0 => bytes.truncate(self.below(length) as usize),
            1 => bytes.extend((0..=self.below(8)).map(|_| self.next() as u8)),
            2 => bytes = (0..self.below(64)).map(|_| self.next() as u8).collect(),
            _ if length > 0 => {
                for _ in 0..=self.below(3) {
                    bytes[self.below(length) as usize] ^= 1 << self.below(8);
                }
            }
            _ => {}
        }
        bytes
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
