# frozen_string_literal: true

Gem::Specification.new do |spec|
  spec.name = "claviger"
  spec.version = "0.1.0"
  spec.summary = "Rails without its secret_key_base: a machine key in custody, used over a local socket"
  spec.authors = ["Claviger"]
  spec.license = "Apache-2.0"
  spec.files = Dir["lib/**/*.rb"]
  spec.required_ruby_version = ">= 2.7"
end
