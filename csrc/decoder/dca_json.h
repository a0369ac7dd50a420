// As much of JSON as the header of a weights file takes: objects, arrays, strings, whole numbers, true, false and null.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace dca::decoder {

struct Json {
  enum class Kind { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  int64_t number = 0;  // of a boolean 0 or 1
  std::string string;  // UTF-8
  std::vector<Json> items;
  std::map<std::string, Json> members;

  // The member of an object, or null.
  const Json* find(const std::string& name) const;
};

// Throws Error (DCA_BAD_WEIGHTS) for anything else: fractions, a name twice, more than a few levels, bytes that are
// left.
Json parse_json(const std::string& text);

// As Python's json.dumps writes a string: ASCII alone.
std::string json_text(const std::string& string);

}  // namespace dca::decoder
