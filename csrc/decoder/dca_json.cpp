#include "dca_json.h"

#include <cstdio>

#include "dca_bytes.h"

namespace dca::decoder {
namespace {

constexpr int kMostLevels = 8;
constexpr uint32_t kNone = 0xffffffff;

// The code point at `at`, which moves on; kNone where there is none in UTF-8.
uint32_t take_code_point(const std::string& text, size_t& at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0u; };
  const uint32_t first = byte(at++);
  if (first < 0x80) return first;
  const int more = first >> 5 == 6 ? 1 : first >> 4 == 14 ? 2 : first >> 3 == 30 ? 3 : 0;
  uint32_t point = first & (0x3fu >> more);
  for (int i = 0; i < more; ++i, ++at) {
    if (byte(at) >> 6 != 2) return kNone;
    point = point << 6 | (byte(at) & 0x3f);
  }
  const uint32_t least[4] = {kNone, 0x80, 0x800, 0x10000};  // in so many bytes
  const bool surrogate = point >> 11 == 0x1b;
  return point < least[more] || point > 0x10ffff || surrogate ? kNone : point;
}

void put_code_point(std::string& out, uint32_t point) {
  if (point < 0x80) {
    out.push_back(static_cast<char>(point));
    return;
  }
  const int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  const uint32_t marks[4] = {0, 0xc0, 0xe0, 0xf0};
  out.push_back(static_cast<char>(marks[more] | point >> (6 * more)));
  for (int i = more - 1; i >= 0; --i) out.push_back(static_cast<char>(0x80 | (point >> (6 * i) & 0x3f)));
}

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Json whole() {
    Json value = any(0);
    space();
    if (at_ != text_.size()) refuse();
    return value;
  }

 private:
  [[noreturn]] void refuse() const { fail(DCA_BAD_WEIGHTS, "bad metadata: malformed JSON at byte %zu", at_); }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void space() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
  }

  bool skip(char c) {
    space();
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void want(char c) {
    if (!skip(c)) refuse();
  }

  bool word(const char* w) {
    const std::string text(w);
    if (text_.compare(at_, text.size(), text) != 0) return false;
    at_ += text.size();
    return true;
  }

  Json any(int level) {
    Json value;
    space();
    const char c = peek();
    if (level == kMostLevels) refuse();
    if (c == '{') {
      object(value, level);
    } else if (c == '[') {
      array(value, level);
    } else if (c == '"') {
      value.kind = Json::Kind::string;
      value.string = string();
    } else if (c == '-' || (c >= '0' && c <= '9')) {
      value.kind = Json::Kind::number;
      value.number = number();
    } else if (word("true") || word("false")) {
      value.kind = Json::Kind::boolean;
      value.number = c == 't';
    } else if (!word("null")) {
      refuse();
    }
    return value;
  }

  void object(Json& value, int level) {
    value.kind = Json::Kind::object;
    want('{');
    if (skip('}')) return;
    do {
      space();
      if (peek() != '"') refuse();
      std::string name = string();
      want(':');
      if (!value.members.emplace(std::move(name), any(level + 1)).second) refuse();
    } while (skip(','));
    want('}');
  }

  void array(Json& value, int level) {
    value.kind = Json::Kind::array;
    want('[');
    if (skip(']')) return;
    do value.items.push_back(any(level + 1));
    while (skip(','));
    want(']');
  }

  int64_t number() {
    const bool negative = peek() == '-';
    if (negative) ++at_;
    const size_t first = at_;
    int64_t value = 0;
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      if (at_ - first == 18) refuse();
      value = 10 * value + (peek() - '0');
    }
    const bool leading = text_[first] == '0' && at_ - first > 1;
    if (at_ == first || leading || peek() == '.' || peek() == 'e' || peek() == 'E') refuse();
    return negative ? -value : value;
  }

  uint32_t hex() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) refuse();
      value = value << 4 | static_cast<uint32_t>(digit);
    }
    return value;
  }

  uint32_t escaped() {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        return static_cast<uint32_t>(c);
      case 'b':
        return '\b';
      case 'f':
        return '\f';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'u':
        break;
      default:
        refuse();
    }
    const uint32_t high = hex();
    if (high >> 11 != 0x1b) return high;
    if (high >> 10 != 0x36 || !word("\\u")) refuse();
    const uint32_t low = hex();
    if (low >> 10 != 0x37) refuse();
    return 0x10000 + ((high & 0x3ff) << 10 | (low & 0x3ff));
  }

  std::string string() {
    std::string out;
    for (++at_; peek() != '"';) {
      if (at_ >= text_.size() || static_cast<uint8_t>(peek()) < 0x20) refuse();
      uint32_t point;
      if (peek() == '\\') {
        ++at_;
        point = escaped();
      } else {
        point = take_code_point(text_, at_);
      }
      if (point == kNone) refuse();
      put_code_point(out, point);
    }
    ++at_;
    return out;
  }

  const std::string& text_;
  size_t at_ = 0;
};

}  // namespace

const Json* Json::find(const std::string& name) const {
  const auto found = members.find(name);
  return found == members.end() ? nullptr : &found->second;
}

Json parse_json(const std::string& text) { return Parser(text).whole(); }

std::string json_text(const std::string& string) {
  std::string out = "\"";
  const auto unit = [&](uint32_t value) {
    char text[12];
    std::snprintf(text, sizeof text, "\\u%04x", static_cast<unsigned>(value));
    out += text;
  };
  for (size_t at = 0; at < string.size();) {
    const uint32_t point = take_code_point(string, at);
    const std::string named = "\"\\\n\r\t\b\f", letters = "\"\\nrtbf";
    const size_t escape = point < 0x80 ? named.find(static_cast<char>(point)) : std::string::npos;
    if (escape != std::string::npos && point != 0) {
      out += {'\\', letters[escape]};
    } else if (point >= 0x20 && point < 0x7f) {
      out.push_back(static_cast<char>(point));
    } else if (point < 0x10000) {
      unit(point);
    } else {
      unit(0xd800 | (point - 0x10000) >> 10);
      unit(0xdc00 | ((point - 0x10000) & 0x3ff));
    }
  }
  return out + "\"";
}

}  // namespace dca::decoder
