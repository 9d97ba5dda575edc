# frozen_string_literal: true

require "claviger"
require "openssl"
require "rails"
require "securerandom"
require "active_support/key_generator"
require "active_support/message_encryptor"
require "active_support/message_verifier"

# Replaces what Rails signs and encrypts with keys derived from secret_key_base by
# calls to custody.
#
# A key generator on the application's secret returns a Handle in place of a key,
# and message verifiers and encryptors that are given one have custody do their
# work. Rails itself makes the message, serialises it and looks at its purpose and
# its end, in the way of its version.
module Claviger
  # What the application has in place of its secret: random, made at each start.
  # Whatever signs with it itself makes what no other process takes.
  STAND_IN = SecureRandom.hex(64).freeze

  class << self
    # The Key that is used, once the application has been configured.
    attr_writer :key

    def key
      @key || raise(Error.new("invalid", "custody is used before it is configured", "use keys after the initializer claviger"))
    end
  end

  # The name of a key that is derived in custody. Whoever uses it as bytes fails.
  class Handle
    attr_reader :salt, :size, :kdf, :iterations

    def initialize(salt, size, kdf, iterations)
      @salt, @size, @kdf, @iterations = salt.to_s, size, kdf, iterations
    end

    def inspect
      "#<#{self.class.name} #{@salt.inspect}>"
    end

    # What every format takes of it.
    def params
      { salt: @salt, kdf: @kdf, iterations: @iterations, whole: true }
    end

    # Returns the tag of a message, which is text in base64 of some kind.
    def sign(text, digest)
      encoding, message = spelling(text)
      signed, _, tag = Claviger.key.protect("rails.verifier", message, **params, digest: digest.downcase, encoding: encoding).rpartition("--")
      return tag if signed == text
      raise Error.new("unsupported", "custody signed another text", "a MessageVerifier has to encode as Rails or GlobalID do")
    rescue ArgumentError
      raise Error.new("unsupported", "a message is to be signed that is not base64", "a MessageVerifier has to encode as Rails or GlobalID do")
    end

    def signed?(text, tag, digest)
      encoding, = spelling(text)
      !Claviger.key.unprotect("rails.verifier", "#{text}--#{tag}", expired: true, **params, digest: digest.downcase, encoding: encoding).nil?
    rescue ArgumentError
      false
    end

    def to_s
      raise Error.new("unsupported", "the key of the salt #{@salt.inspect} is wanted as bytes, and it is in custody",
                      "this path is not covered: give it a secret of its own")
    end
    alias to_str to_s

    private

    def method_missing(name, *)
      String.method_defined?(name) ? to_s : super
    end

    def respond_to_missing?(*)
      false
    end

    # Returns the encoding of a text and what it decodes to.
    def spelling(text)
      encoding = if text.length % 4 != 0 then "base64url"
                 elsif !text.match?(/[-_]/) then ""
                 else text.end_with?("=") ? "base64url-padded" : "base64url"
                 end
      [encoding, (text.tr("-_", "+/") + "=" * (-text.length % 4)).unpack1("m0")]
    end
  end

  module Generator # :nodoc: of ActiveSupport::KeyGenerator
    def generate_key(salt, size = 64)
      return super unless @secret == STAND_IN
      Handle.new(salt, size, (@hash_digest_class || OpenSSL::Digest::SHA1).new.name.downcase, @iterations)
    end
  end

  # Has on_rotation called for a message by an older version too, so that Rails
  # writes a cookie again. name is the method that knows of rotations.
  def self.reading(name)
    Module.new do
      define_method(name) do |message, on_rotation: @on_rotation, **options|
        value, renew = Claviger.watching { super(message, on_rotation: on_rotation, **options) }
        on_rotation&.call if renew
        value
      end
    end
  end

  # Whether Rails compares digests in digest_matches_data?; 6.1 does not.
  COMPARES = ActiveSupport::MessageVerifier.private_method_defined?(:digest_matches_data?)
  private_constant :COMPARES

  module Verifier # :nodoc: of ActiveSupport::MessageVerifier
    def initialize(*args, **options)
      super
      return if !@secret.is_a?(Handle) || @secret.size == 64
      raise Error.new("unsupported", "a MessageVerifier has a key of #{@secret.size} bytes", "custody has those of 64, as generate_key makes them")
    end

    def valid_message?(message)
      return super if COMPARES || !@secret.is_a?(Handle)
      return if message.nil? || !message.valid_encoding? || message.blank?
      data, digest = message.split("--")
      digest_matches_data?(digest, data)
    end

    private

    def digest_matches_data?(digest, data)
      return super unless @secret.is_a?(Handle)
      data.present? && digest.present? && @secret.signed?(data, digest, @digest)
    end

    def generate_digest(data)
      @secret.is_a?(Handle) ? @secret.sign(data, @digest) : super
    end
  end

  module Encryptor # :nodoc: of ActiveSupport::MessageEncryptor
    def initialize(*secrets, **options)
      super
      return if secrets.grep(Handle).empty?
      @format, @params = Claviger.sealing(@cipher, *secrets, **options)
      # One call does what the inner verifier would.
      @verifier = self.class.const_defined?(:NullVerifier) ? self.class::NullVerifier : nil
    end

    # Remembers the last message that was opened, so that keeping can.
    def remember
      @remembers = true
    end

    # Within the block a message that is the one that was opened has its token.
    def keeping
      @keeps = true
      yield
    ensure
      @keeps = false
    end

    private

    def _encrypt(value, **metadata) # Rails 6.1 and 7.0
      @format ? seal(ActiveSupport::Messages::Metadata.wrap(@serializer.dump(value), **metadata)) : super
    end

    def _decrypt(token, purpose)
      return super unless @format
      whole = unseal(token) || raise(ActiveSupport::MessageEncryptor::InvalidMessage)
      begin
        message = ActiveSupport::Messages::Metadata.verify(whole, purpose)
        @serializer.load(message) if message
      rescue TypeError, ArgumentError
        raise ActiveSupport::MessageEncryptor::InvalidMessage
      end
    end

    def encrypt(message) # Rails 7.1 and later
      @format ? seal(message) : super
    end

    def decrypt(token)
      return super unless @format
      unseal(token) || throw(:invalid_message_format, "custody does not take it")
    end

    def seal(message)
      return @opened.last if @keeps && @opened&.first == message.b
      Claviger.key.protect(@format, message, **@params)
    end

    def unseal(token)
      return unless token.is_a?(String)
      found = Claviger.key.unprotect(@format, token, expired: true, **@params)
      @opened = (found && !found.renew ? [found.payload, token] : nil) if @remembers
      found&.payload
    end
  end

  # Returns the format and its parameters for what a MessageEncryptor is given.
  def self.sealing(cipher, secret, sign_secret = nil, url_safe: false, digest: nil, **)
    case cipher.to_s.downcase
    when /\Aaes-(128|192|256)-gcm\z/
      if secret.is_a?(Handle) && secret.size == Integer($1) / 8
        return ["rails.encrypted", { **secret.params, size: secret.size, encoding: url_safe ? "base64url" : "" }]
      end
    when "aes-256-cbc"
      pair = [secret, sign_secret]
      if pair.all?(Handle) && pair.map(&:size) == [32, 64] && pair.map { |h| [h.kdf, h.iterations] }.uniq.one? && !url_safe
        return ["rails.cbc", { **secret.params, salt2: sign_secret.salt, digest: (digest || "sha1").to_s.downcase }]
      end
    end
    raise Error.new("unsupported", "custody has no MessageEncryptor with the cipher #{cipher} and these keys",
                    "use AES-GCM, or AES-256-CBC with a key of 32 bytes and another of 64 and without url_safe")
  end

  module Jar # :nodoc: of a request's encrypted cookies
    def initialize(*)
      super
      @encryptor.remember
    end

    def keeping(&block)
      @encryptor.keeping(&block)
    end
  end

  # A session that did not change keeps its token: Rails would make another at
  # each page.
  module Session # :nodoc: of ActionDispatch::Session::CookieStore
    private

    def set_cookie(request, *)
      cookie_jar(request).keeping { super }
    end
  end

  def self.install
    verifier, encryptor = ActiveSupport::MessageVerifier, ActiveSupport::MessageEncryptor
    known = verifier.private_method_defined?(:generate_digest) &&
            %i[_decrypt decrypt].any? { |name| encryptor.private_method_defined?(name) }
    raise Error.new("unsupported", "this Rails (#{::Rails.version}) is not known", "see the versions in the guide") unless known
    ActiveSupport::KeyGenerator.prepend(Generator)
    verifier.prepend(Verifier, reading(verifier.method_defined?(:read_message) ? :read_message : :verified))
    encryptor.prepend(Encryptor, reading(encryptor.method_defined?(:read_message) ? :read_message : :decrypt_and_verify))
  end
  private_class_method :install
  install

  # Configures custody: config.claviger.key, and socket, and timeout in seconds (2).
  class Railtie < ::Rails::Railtie
    config.claviger = ActiveSupport::OrderedOptions.new

    config.before_configuration { |app| app.config.secret_key_base = STAND_IN }

    initializer "claviger", after: :load_environment_config, before: :load_config_initializers, group: :all do |app|
      options = app.config.claviger.to_h
      name = options.delete(:key) || raise(Error.new("invalid", "config.claviger.key is not set", "set it to the name of the adopted key"))
      Claviger.key = Key.new(name, **options)
      Railtie.refuse(app)
      ActionDispatch::Cookies::EncryptedKeyRotatingCookieJar.prepend(Jar)
      ActionDispatch::Session::CookieStore.prepend(Session)
    end

    config.after_initialize { |app| refuse(app) }

    # Refuses to start while there is a secret other than the random one.
    def self.refuse(app)
      places = []
      places << "the environment (SECRET_KEY_BASE)" if ENV.key?("SECRET_KEY_BASE")
      places << "the credentials" if app.credentials.secret_key_base
      places << "config.secret_key_base or config/secrets.yml" if places.empty? && app.secret_key_base != STAND_IN
      return if places.empty?
      raise Error.new("invalid", "a secret_key_base is still configured in #{places.join(" and ")}", "remove it: the key is in custody")
    end
  end
end
