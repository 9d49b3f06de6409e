//! The grammar: what may follow WHERE in SQL, as far as Temporal's query language has it.
//!
//! ```text
//! query      = [filter] [GROUP BY name {, name}] [ORDER BY name [ASC|DESC] {, …}] [LIMIT …]
//! filter     = and { OR and };  and = not { AND not };  not = NOT not | "(" filter ")" | condition
//! condition  = name (= | != | <> | < | <= | > | >= | [NOT] LIKE | [NOT] STARTS_WITH) value
//!            | name [NOT] IN "(" value {, value} ")" | name [NOT] BETWEEN value AND value | name IS [NOT] NULL
//! ```

use std::fmt;

/// Deepest nesting of parentheses and NOTs: bounds the recursion.
const DEEPEST: usize = 200;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statement {
    pub filter: Option<Expr>,
    pub group_by: Vec<String>,
    pub order_by: Vec<(String, Direction)>,
    pub has_limit: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Ascending,
    Descending,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expr {
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Compare {
        name: String,
        operator: Operator,
        value: Literal,
    },
    Between {
        name: String,
        negated: bool,
        from: Literal,
        to: Literal,
    },
    IsNull {
        name: String,
        negated: bool,
    },
    /// A name alone.
    Name,
    Function,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
    Like,
    NotLike,
    StartsWith,
    NotStartsWith,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => "IN",
            Self::NotIn => "NOT IN",
            Self::Like => "LIKE",
            Self::NotLike => "NOT LIKE",
            Self::StartsWith => "STARTS_WITH",
            Self::NotStartsWith => "NOT STARTS_WITH",
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Text(String),
    Integer(i64),
    Number(f64),
    Bool(bool),
    List(Vec<Literal>),
    /// A name where a value belongs: most likely quotes are missing.
    Name(String),
    Null,
}

/// What cannot be read, and where: the count of characters up to and with the token that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub position: usize,
    pub near: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// In backticks: never a keyword.
    Quoted(String),
    Text(String),
    Integer(i64),
    Number(f64),
    Symbol(&'static str),
    /// No token begins so.
    Bad(String),
    End,
}

impl Token {
    fn text(&self) -> String {
        match self {
            Self::Word(text) | Self::Quoted(text) | Self::Text(text) | Self::Bad(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Symbol(symbol) => (*symbol).to_owned(),
            Self::End => String::new(),
        }
    }
}

/// Tokens with the position of their end.
fn tokens(text: &str) -> Vec<(Token, usize)> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        while chars.get(at).is_some_and(|c| c.is_whitespace()) {
            at += 1;
        }
        let Some(&first) = chars.get(at) else {
            found.push((Token::End, at));
            return found;
        };
        let (token, end) = match first {
            '\'' | '"' => quoted(&chars, at),
            '`' => match chars[at + 1..].iter().position(|c| *c == '`') {
                Some(length) => (Token::Quoted(chars[at + 1..at + 1 + length].iter().collect()), at + length + 2),
                None => (Token::Bad(chars[at..].iter().collect()), chars.len()),
            },
            c if c.is_ascii_digit() => number(&chars, at),
            '.' if chars.get(at + 1).is_some_and(char::is_ascii_digit) => number(&chars, at),
            c if c.is_alphabetic() || c == '_' || c == '@' => {
                let is_part = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '@' | '$' | '.');
                let length = chars[at..].iter().take_while(|c| is_part(c)).count();
                (Token::Word(chars[at..at + length].iter().collect()), at + length)
            }
            _ => symbol(&chars, at),
        };
        found.push((token, end));
        at = end;
    }
}

fn symbol(chars: &[char], at: usize) -> (Token, usize) {
    const SYMBOLS: [&str; 16] =
        ["<=>", "<=", ">=", "!=", "<>", "&&", "||", "=", "<", ">", "(", ")", ",", "-", "!", "+"];
    let rest: String = chars[at..].iter().take(3).collect();
    match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
        Some(symbol) => (Token::Symbol(symbol), at + symbol.len()),
        None => (Token::Bad(chars[at].to_string()), at + 1),
    }
}

/// A text in quotes; a quote in it is doubled, or follows a backslash.
fn quoted(chars: &[char], at: usize) -> (Token, usize) {
    let quote = chars[at];
    let mut text = String::new();
    let mut i = at + 1;
    while let Some(&c) = chars.get(i) {
        i += 1;
        if c == quote {
            if chars.get(i) != Some(&quote) {
                return (Token::Text(text), i);
            }
            i += 1;
            text.push(quote);
        } else if c == '\\' {
            let Some(&escaped) = chars.get(i) else { break };
            i += 1;
            match escaped {
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                't' => text.push('\t'),
                '0' => text.push('\0'),
                'b' => text.push('\u{8}'),
                'Z' => text.push('\u{1a}'),
                '\\' | '\'' | '"' => text.push(escaped),
                other => text.extend(['\\', other]),
            }
        } else {
            text.push(c);
        }
    }
    (Token::Bad(text), chars.len())
}

fn number(chars: &[char], at: usize) -> (Token, usize) {
    let mut end = at;
    let mut previous = ' ';
    while let Some(&c) = chars.get(end) {
        let sign_of_exponent = matches!(c, '+' | '-') && matches!(previous, 'e' | 'E');
        if !(c.is_ascii_alphanumeric() || c == '.' || sign_of_exponent) {
            break;
        }
        previous = c;
        end += 1;
    }
    let text: String = chars[at..end].iter().collect();
    let token = match (text.parse::<i64>(), text.parse::<f64>()) {
        (Ok(integer), _) => Token::Integer(integer),
        // "1e" or "infinity" are no numbers here.
        (Err(_), Ok(number)) if number.is_finite() => Token::Number(number),
        _ => Token::Bad(text),
    };
    (token, end)
}

/// Reads a whole query.
pub(crate) fn parse(text: &str) -> Result<Statement, SyntaxError> {
    let mut parser = Parser { tokens: tokens(text), at: 0, depth: 0 };
    let starts_clause = parser.is_word("order") || parser.is_word("group") || parser.is_word("limit");
    let filter = if starts_clause || *parser.token() == Token::End { None } else { Some(parser.filter()?) };
    let mut statement = Statement { filter, group_by: Vec::new(), order_by: Vec::new(), has_limit: false };
    if parser.take_word("group") {
        parser.expect_word("by")?;
        loop {
            statement.group_by.push(parser.name()?);
            if !parser.take_symbol(",") {
                break;
            }
        }
    }
    if parser.take_word("order") {
        parser.expect_word("by")?;
        loop {
            let name = parser.name()?;
            let descending = !parser.take_word("asc") && parser.take_word("desc");
            statement.order_by.push((name, if descending { Direction::Descending } else { Direction::Ascending }));
            if !parser.take_symbol(",") {
                break;
            }
        }
    }
    if parser.take_word("limit") {
        statement.has_limit = true;
        parser.literal()?;
        if parser.take_symbol(",") || parser.take_word("offset") {
            parser.literal()?;
        }
    }
    if *parser.token() != Token::End {
        return Err(parser.error());
    }
    Ok(statement)
}

/// Words that are no names unless quoted.
const RESERVED: [&str; 16] = [
    "and",
    "or",
    "not",
    "in",
    "like",
    "between",
    "is",
    "null",
    "starts_with",
    "order",
    "group",
    "by",
    "limit",
    "true",
    "false",
    "where",
];

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn token(&self) -> &Token {
        // The last token is End and is never passed.
        self.tokens.get(self.at).map_or(&Token::End, |(token, _)| token)
    }

    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    fn error(&self) -> SyntaxError {
        let position = self.tokens.get(self.at).map_or(0, |(_, end)| *end);
        let near = match self.token() {
            Token::Symbol(_) | Token::End => String::new(),
            token => token.text(),
        };
        SyntaxError { position, near }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.token(), Token::Word(text) if text.eq_ignore_ascii_case(word))
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is = self.is_word(word);
        if is {
            self.advance();
        }
        is
    }

    fn expect_word(&mut self, word: &str) -> Result<(), SyntaxError> {
        if self.take_word(word) { Ok(()) } else { Err(self.error()) }
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        let is = matches!(self.token(), Token::Symbol(text) if *text == symbol);
        if is {
            self.advance();
        }
        is
    }

    fn expect_symbol(&mut self, symbol: &str) -> Result<(), SyntaxError> {
        if self.take_symbol(symbol) { Ok(()) } else { Err(self.error()) }
    }

    fn filter(&mut self) -> Result<Expr, SyntaxError> {
        let mut left = self.and()?;
        while self.take_word("or") || self.take_symbol("||") {
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, SyntaxError> {
        let mut left = self.not()?;
        while self.take_word("and") || self.take_symbol("&&") {
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr, SyntaxError> {
        if self.depth >= DEEPEST {
            return Err(self.error());
        }
        self.depth += 1;
        let expr = if self.take_word("not") || self.take_symbol("!") {
            Expr::Not(Box::new(self.not()?))
        } else if self.take_symbol("(") {
            let inner = self.filter()?;
            self.expect_symbol(")")?;
            inner
        } else {
            self.condition()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn name(&mut self) -> Result<String, SyntaxError> {
        let name = match self.token() {
            Token::Quoted(name) => name.clone(),
            Token::Word(word) if !RESERVED.iter().any(|reserved| word.eq_ignore_ascii_case(reserved)) => word.clone(),
            _ => return Err(self.error()),
        };
        self.advance();
        Ok(name)
    }

    fn condition(&mut self) -> Result<Expr, SyntaxError> {
        let name = self.name()?;
        if self.take_symbol("(") {
            // A function call: read over its arguments, to say what is wrong with it.
            while *self.token() != Token::End && !self.take_symbol(")") {
                self.advance();
            }
            return Ok(Expr::Function);
        }
        if self.take_word("is") {
            let negated = self.take_word("not");
            self.expect_word("null")?;
            return Ok(Expr::IsNull { name, negated });
        }
        let negated = self.take_word("not");
        if self.take_word("between") {
            let from = self.literal()?;
            self.expect_word("and")?;
            let to = self.literal()?;
            return Ok(Expr::Between { name, negated, from, to });
        }
        let of = |positive, negative| if negated { negative } else { positive };
        let operator = if self.take_word("in") {
            let operator = of(Operator::In, Operator::NotIn);
            let value = self.list()?;
            return Ok(Expr::Compare { name, operator, value });
        } else if self.take_word("starts_with") {
            of(Operator::StartsWith, Operator::NotStartsWith)
        } else if self.take_word("like") {
            of(Operator::Like, Operator::NotLike)
        } else if negated {
            return Err(self.error());
        } else {
            let Token::Symbol(symbol) = *self.token() else {
                return if self.ends_condition() { Ok(Expr::Name) } else { Err(self.error()) };
            };
            let operator = match symbol {
                "=" => Operator::Equal,
                "!=" | "<>" => Operator::NotEqual,
                "<" => Operator::Less,
                "<=" => Operator::LessOrEqual,
                ">" => Operator::Greater,
                ">=" => Operator::GreaterOrEqual,
                ")" | "&&" | "||" => return Ok(Expr::Name),
                _ => return Err(self.error()),
            };
            self.advance();
            operator
        };
        let value = self.literal()?;
        Ok(Expr::Compare { name, operator, value })
    }

    fn ends_condition(&self) -> bool {
        *self.token() == Token::End || ["and", "or", "order", "group", "limit"].iter().any(|word| self.is_word(word))
    }

    fn list(&mut self) -> Result<Literal, SyntaxError> {
        self.expect_symbol("(")?;
        let mut values = Vec::new();
        loop {
            values.push(self.literal()?);
            if !self.take_symbol(",") {
                break;
            }
        }
        self.expect_symbol(")")?;
        Ok(Literal::List(values))
    }

    fn literal(&mut self) -> Result<Literal, SyntaxError> {
        let negative = self.take_symbol("-");
        if !negative {
            // Harmless, and some write it.
            self.take_symbol("+");
        }
        let literal = match self.token().clone() {
            Token::Integer(number) => Literal::Integer(if negative { -number } else { number }),
            Token::Number(number) => Literal::Number(if negative { -number } else { number }),
            _ if negative => return Err(self.error()),
            Token::Text(text) => Literal::Text(text),
            Token::Word(word) if word.eq_ignore_ascii_case("true") => Literal::Bool(true),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => Literal::Bool(false),
            Token::Word(word) if word.eq_ignore_ascii_case("null") => Literal::Null,
            Token::Word(_) | Token::Quoted(_) => return Ok(Literal::Name(self.name()?)),
            Token::Symbol(_) | Token::Bad(_) | Token::End => return Err(self.error()),
        };
        self.advance();
        Ok(literal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> String {
        fn show(expr: &Expr) -> String {
            match expr {
                Expr::And(a, b) => format!("({} & {})", show(a), show(b)),
                Expr::Or(a, b) => format!("({} | {})", show(a), show(b)),
                Expr::Not(a) => format!("!{}", show(a)),
                Expr::Compare { name, operator, value } => format!("{name} {operator} {value:?}"),
                Expr::Between { name, negated, from, to } => format!("{name} {negated} {from:?}..{to:?}"),
                Expr::IsNull { name, negated } => format!("{name} null {}", !negated),
                Expr::Name => "name".into(),
                Expr::Function => "function".into(),
            }
        }
        match parse(text) {
            Ok(statement) => statement.filter.map_or("-".into(), |filter| show(&filter)),
            Err(error) => format!("error at {} near {}", error.position, error.near),
        }
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(filter(text), expected, "{text}");
    }

    #[test]
    fn conditions() {
        check("a = 'x'", "a = Text(\"x\")");
        check("`a b` != \"it's\"", "a b != Text(\"it's\")");
        check("a = 'it''s \\'so\\''", "a = Text(\"it's 'so'\")");
        check("a<=-5", "a <= Integer(-5)");
        check("a > 1.5e3", "a > Number(1500.0)");
        check("a <> true", "a != Bool(true)");
        check("a in ('x', 'y')", "a IN List([Text(\"x\"), Text(\"y\")])");
        check("a NOT IN (1)", "a NOT IN List([Integer(1)])");
        check("a between 1 and 2 and b = 3", "(a false Integer(1)..Integer(2) & b = Integer(3))");
        check("a not between 1 and 2", "a true Integer(1)..Integer(2)");
        check("a is null or b IS NOT NULL", "(a null true | b null false)");
        check("a STARTS_WITH 'x'", "a STARTS_WITH Text(\"x\")");
        check("a not starts_with 'x'", "a NOT STARTS_WITH Text(\"x\")");
        check("a like 'x%'", "a LIKE Text(\"x%\")");
        check("a = b", "a = Name(\"b\")");
        check("a", "name");
        check("f(x, 'y')", "function");
        check("", "-");
        check("  ", "-");
    }

    #[test]
    fn precedence() {
        check("a=1 or b=2 and not c=3", "(a = Integer(1) | (b = Integer(2) & !c = Integer(3)))");
        check("(a=1 or b=2) and c=3", "((a = Integer(1) | b = Integer(2)) & c = Integer(3))");
        check("not (a=1)", "!a = Integer(1)");
    }

    #[test]
    fn clauses() {
        let statement = parse("a = 1 GROUP BY b ORDER BY c DESC, `d`").expect("valid");
        assert_eq!(statement.group_by, ["b"]);
        let order = [("c".to_owned(), Direction::Descending), ("d".to_owned(), Direction::Ascending)];
        assert_eq!(statement.order_by, order);
        assert!(parse("order by a").expect("valid").filter.is_none());
        assert!(parse("limit 5").expect("valid").has_limit);
    }

    #[test]
    fn nonsense_names_its_place() {
        check("a = ", "error at 4 near ");
        check("a b", "error at 3 near b");
        check("a = 'x", "error at 6 near x");
        check("a = 1 and", "error at 9 near ");
        check("(a = 1", "error at 6 near ");
        check("a = 1)", "error at 6 near ");
        check("a is 5", "error at 6 near 5");
        check("a = #", "error at 5 near #");
        check("and", "error at 3 near and");
        check(&"(".repeat(10_000), "error at 201 near ");
        check(&"not ".repeat(10_000), "error at 803 near not");
    }
}
