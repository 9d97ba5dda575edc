# A Rails application in one file. It signs with a secret that it reads from
# standard input (local), or not at all (custody).
#
# Usage: rails_app.rb local|custody DIRECTORY SERIALIZER [KEY SOCKET]

require "rails"
require "active_record/railtie"
require "action_controller/railtie"
require "global_id/railtie"
require "puma"
require "puma/server"

MODE, DIRECTORY, SERIALIZER, KEY, SOCKET = ARGV
require "claviger/rails" if MODE == "custody"

class Shop < Rails::Application
  config.root = DIRECTORY
  config.load_defaults "#{Rails::VERSION::MAJOR}.#{Rails::VERSION::MINOR}"
  config.eager_load = false
  config.log_level = :error
  config.hosts.clear if config.respond_to?(:hosts)
  config.logger = ActiveSupport::Logger.new($stderr, level: :error)
  config.session_store :cookie_store, key: "_shop"
  config.action_dispatch.cookies_serializer = SERIALIZER.to_sym
  # Cookies of a former time, which the application still takes.
  initializer "former", after: :load_config_initializers do |app|
    app.config.action_dispatch.cookies_rotations.tap do |rotations|
      rotations.rotate :signed, digest: "SHA256"
      rotations.rotate :encrypted, app.former
    end
  end

  # A key by the hash that was the default before Rails 7.
  def former
    ActiveSupport::KeyGenerator.new(secret_key_base, iterations: 1000, hash_digest_class: OpenSSL::Digest::SHA1).generate_key("former cookie", 32)
  end

  if MODE == "custody"
    config.claviger.key = KEY
    config.claviger.socket = SOCKET
    config.secret_key_base = ENV["OLD_SECRET"] if ENV["OLD_SECRET"]
  else
    config.secret_key_base = $secret || $stdin.gets.strip
  end
end

ENV["DATABASE_URL"] = "sqlite3:#{DIRECTORY}/rails.sqlite3"

class User < ActiveRecord::Base
  include GlobalID::Identification

  def self.alice
    find_or_create_by!(name: "alice")
  end
end

class PagesController < ActionController::Base
  protect_from_forgery with: :exception

  def login
    session[:user] = "alice"
    session[:cart] = ["three apples"]
    render plain: "in"
  end

  def me
    render plain: "#{session[:user] || "-"} #{Array(session[:cart]).join(",")}"
  end

  def add
    session[:cart] << "a pear"
    render plain: "added"
  end

  def cookie
    cookies.signed[:pref] = "dark"
    cookies.encrypted[:note] = { value: "größe", expires: 1.hour }
    # As Rails 5.1 made it, and by a former key.
    dumped = SERIALIZER == "json" ? '"x"' : Marshal.dump("x")
    cookies[:older] = encryptor("aes-256-cbc").encrypt_and_sign(dumped, purpose: "cookie.older")
    cookies[:former] = encryptor("aes-256-gcm", Rails.application.former).encrypt_and_sign(dumped, purpose: "cookie.former")
    render plain: "set"
  end

  def pref
    render plain: [cookies.signed[:pref], cookies.encrypted[:note], cookies.encrypted[:older], cookies.encrypted[:former]].map { |c| c || "-" }.join(" ")
  end

  def sign
    render plain: [
      verifier.generate("größe"),
      verifier.generate({ "id" => 5 }, purpose: :login, expires_in: 1.hour),
      User.alice.signed_id(purpose: :reset),
      User.alice.to_sgid(for: "mail").to_s,
      encryptor("aes-256-gcm").encrypt_and_sign("secret", purpose: :letter),
      encryptor("aes-256-cbc").encrypt_and_sign("secret"),
    ].join("\n")
  end

  # Says of each token whether it is taken.
  def check
    plain, login, id, gid, gcm, cbc = request.headers["X-Tokens"].split(" ")
    render plain: [
      taken { verifier.verify(plain) } == "größe",
      verifier.verified(login, purpose: :login)&.to_a == [["id", 5]] && verifier.verified(login, purpose: :other).nil?,
      User.find_signed(id, purpose: :reset) == User.alice,
      GlobalID::Locator.locate_signed(gid, for: "mail") == User.alice,
      taken { encryptor("aes-256-gcm").decrypt_and_verify(gcm, purpose: :letter) } == "secret",
      taken { encryptor("aes-256-cbc").decrypt_and_verify(cbc) } == "secret",
    ].map { |ok| ok ? "yes" : "no" }.join(" ")
  end

  def old
    verifier.generate("x", expires_in: -1).then { |token| render plain: verifier.verified(token).inspect }
  end

  # What wants a key as bytes.
  def bytes
    key = Rails.application.key_generator.generate_key("mine")
    render plain: OpenSSL::HMAC.hexdigest("SHA256", params[:short] ? key[0, 32] : key, "x")
  end

  def csrf
    render plain: request.get? ? form_authenticity_token : "posted"
  end

  # A page such as applications have: a session, a user, and some markup.
  def page
    render inline: <<~PAGE, locals: { user: User.find_by!(name: session[:user]) }
      <h1><%= user.name %></h1><ul>
      <% 25.times do |n| %><li class="<%= cycle("a", "b") %>"><%= n %>: <%= user.name.upcase %></li><% end %>
      </ul><%= User.count %>
    PAGE
  end

  private

  def taken
    yield
  rescue ActiveSupport::MessageVerifier::InvalidSignature, ActiveSupport::MessageEncryptor::InvalidMessage
    nil
  end

  def verifier
    Rails.application.message_verifier(:mail)
  end

  def encryptor(cipher, key = derived("letters" => 32))
    key = derived("encrypted cookie" => 32, "signed encrypted cookie" => 64) if cipher == "aes-256-cbc"
    serializer = ActiveSupport::MessageEncryptor::NullSerializer if action_name == "cookie"
    ActiveSupport::MessageEncryptor.new(*key, cipher: cipher, serializer: serializer)
  end

  def derived(salts)
    salts.map { |salt, size| Rails.application.key_generator.generate_key(salt, size) }
  end
end

# Configures the application, which answers then.
def start
  Shop.initialize!
  Shop.routes.draw do
    PagesController.action_methods.each { |name| match "/#{name}", to: "pages##{name}", via: %i[get post] }
  end
  ActiveRecord::Base.connection.create_table(:users) { |t| t.string :name } unless ActiveRecord::Base.connection.table_exists?(:users)
  Shop
end

if $PROGRAM_NAME == __FILE__
  server = Puma::Server.new(start)
  $stdout.puts server.add_tcp_listener("127.0.0.1", 0).addr[1]
  $stdout.flush
  server.run.join
end
