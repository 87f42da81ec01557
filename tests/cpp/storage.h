// Storage types as bytes: conversion from and to double, independent of the code under test.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "alr_params.h"

namespace test {

using alr_fast::DType;

inline int size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Bits of the fraction, and the exponent of the smallest normal number.
inline int fraction_bits(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 10;
    case DType::kBFloat16:
      return 7;
    case DType::kFloat32:
      return 23;
    default:
      return 52;
  }
}
inline int smallest_exponent(DType dtype) {
  return dtype == DType::kFloat16 ? -14 : dtype == DType::kFloat64 ? -1022 : -126;
}

// Distance from |x| to the next larger number.
inline double unit_at(DType dtype, double x) {
  const double magnitude = std::fabs(x);
  int exponent = magnitude > 0 ? std::ilogb(magnitude) : -100000;
  if (exponent < smallest_exponent(dtype)) exponent = smallest_exponent(dtype);
  return std::ldexp(1.0, exponent - fraction_bits(dtype));
}

inline uint16_t encode_16(DType dtype, double x) {
  const int bits = fraction_bits(dtype), lowest = smallest_exponent(dtype);
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const uint16_t infinity = static_cast<uint16_t>(0x7fff >> bits << bits);
  if (std::isnan(x)) return infinity | 1 << (bits - 1);
  if (std::isinf(x)) return sign | infinity;
  const double unit = unit_at(dtype, x);
  const double rounded = std::nearbyint(std::fabs(x) / unit) * unit;  // ties to even
  if (rounded == 0) return sign;
  const int exponent = std::ilogb(rounded);
  if (exponent > 1 - lowest) return sign | infinity;
  if (exponent < lowest)
    return sign | static_cast<uint16_t>(rounded / std::ldexp(1.0, lowest - bits));
  const double fraction = rounded / std::ldexp(1.0, exponent - bits) - (1 << bits);
  return static_cast<uint16_t>(sign | (exponent - lowest + 1) << bits | static_cast<int>(fraction));
}

inline double decode_16(DType dtype, uint16_t x) {
  const int bits = fraction_bits(dtype), lowest = smallest_exponent(dtype);
  const int field = (x & 0x7fff) >> bits, fraction = x & ((1 << bits) - 1);
  const double sign = x & 0x8000 ? -1 : 1;
  if (field == 0x7fff >> bits) return fraction != 0 ? NAN : sign * INFINITY;
  if (field == 0) return sign * std::ldexp(fraction, lowest - bits);
  return sign * std::ldexp(fraction + (1 << bits), field - 1 + lowest - bits);
}

inline double get(DType dtype, const void* array, int64_t at) {
  const char* const from = static_cast<const char*>(array) + at * size_of(dtype);
  if (dtype == DType::kFloat64) {
    double x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  if (dtype == DType::kFloat32) {
    float x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  uint16_t x;
  std::memcpy(&x, from, sizeof(x));
  return decode_16(dtype, x);
}

inline void set(DType dtype, void* array, int64_t at, double value) {
  char* const to = static_cast<char*>(array) + at * size_of(dtype);
  if (dtype == DType::kFloat64) {
    std::memcpy(to, &value, sizeof(value));
  } else if (dtype == DType::kFloat32) {
    const float x = static_cast<float>(value);
    std::memcpy(to, &x, sizeof(x));
  } else {
    const uint16_t x = encode_16(dtype, value);
    std::memcpy(to, &x, sizeof(x));
  }
}

}  // namespace test
